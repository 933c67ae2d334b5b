"""kwsbench: a workbench for sub-8-bit keyword spotting."""

import os

# libgomp, torch's thread pool, spins before it sleeps. Two jobs on two cores then starve each other: 1 and 28 training
# steps per second instead of 206. With a short spin each gets 65, and one alone keeps its 205 (benchmarks/threads.py).
# Read when torch loads, which is after this.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__version__ = "0.1.0"
