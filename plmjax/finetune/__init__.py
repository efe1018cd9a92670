"""Fine-tuning of pretrained encoders for a task."""
