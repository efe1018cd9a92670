"""Checkpoints: saved in the background, verified by digests, on disks and s3://."""
