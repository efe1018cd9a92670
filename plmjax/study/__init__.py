"""Several fine-tunings by one protocol, and how far chance explains their scores."""
