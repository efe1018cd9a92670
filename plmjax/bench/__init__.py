"""Speed of a training step and of preparing text."""
