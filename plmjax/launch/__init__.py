"""Starts runs: locally, on Slurm, TPU VMs, Kubernetes, SkyPilot. Needs no daemon."""
