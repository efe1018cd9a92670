"""Simple models, which a fine-tuned one must beat."""
