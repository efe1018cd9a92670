"""Simple models, which a fine-tuned one has to beat."""
