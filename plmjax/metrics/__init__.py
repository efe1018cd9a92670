"""Scores of predictions, and intervals of their differences."""
