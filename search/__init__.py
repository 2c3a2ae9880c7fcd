"""The search node: serves queries over HTTP, hot-swaps model versions, and publishes what it served."""
