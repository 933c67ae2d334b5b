"""Streaming models: ``step(x, state) -> y, state``."""
