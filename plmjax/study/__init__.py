"""Several fine-tunings by one protocol, and what chance has to do with their scores."""
