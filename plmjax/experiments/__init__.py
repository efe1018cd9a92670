"""Experiments: plans of many runs, their outcomes, and what compares them."""
