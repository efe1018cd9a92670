"""Smaller and faster models: numbers of fewer bits, fewer parts, fewer layers."""
