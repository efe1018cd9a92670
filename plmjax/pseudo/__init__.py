"""Semi-supervised fine-tuning by pseudo-labels."""
