"""Training: the step, the loop, optimizer, schedule, mesh and metrics."""
