"""Integer programs: their form, how a model becomes one, the NumPy reference, the kernels, and how they run."""
