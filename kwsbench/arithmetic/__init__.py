"""Codebooks and fixed-point rounding: one code for NumPy and torch (docs/arithmetic.md)."""
