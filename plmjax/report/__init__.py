"""What a person looks at: curves of a run, and pages of HTML."""
