"""A folder served over HTTP, without JAX."""
