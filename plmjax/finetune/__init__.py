"""Pretrained encoders made ready for a task."""
