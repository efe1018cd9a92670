"""Sweeps: many runs from one file, a few at a time, and their results."""
