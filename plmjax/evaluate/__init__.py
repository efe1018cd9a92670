"""Opens trained models: predictions, guesses, scores on held-out text."""
