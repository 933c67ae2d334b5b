"""Numba kernels that model Arm NEON lanes, the SDOT instruction and a neural accelerator."""
