"""Pretraining: text in, a trained model in the Hugging Face format out."""
