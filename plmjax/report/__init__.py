"""Output for people: curves, scores, dry runs, figures and HTML pages."""
