"""From text to batches: sources, the prepared store, rows and the loader."""
