"""Output for people: curves of a run, and HTML pages."""
