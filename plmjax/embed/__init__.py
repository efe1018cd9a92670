"""Texts and words as vectors."""
