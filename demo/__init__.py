"""The demo: the embedded stack, a simulated population, and the loop from click to better search."""
