"""Checkpoints: saved in the background, held against damage, on disks and s3://."""
