"""Plans of many runs and their comparison: sweeps, studies, pseudo-labels."""
