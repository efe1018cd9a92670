"""Scores, and what a difference of two is worth."""
