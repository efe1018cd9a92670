"""Vectors of texts and words."""
