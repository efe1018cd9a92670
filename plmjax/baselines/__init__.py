"""Simple models, to compare a fine-tuned one with."""
