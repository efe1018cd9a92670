"""Starts runs: here, on Slurm, TPU VMs, Kubernetes, SkyPilot. No daemon of ours."""
