"""Text in, batches out: sources, the prepared store, rows and the loader."""
