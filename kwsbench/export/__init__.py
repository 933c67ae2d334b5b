"""Packed weights: the bytes that a device stores."""
