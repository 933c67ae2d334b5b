"""kwsbench: a workbench for sub-8-bit keyword spotting."""

import os

# libgomp, torch's thread pool, spins before it sleeps. Two jobs on two cores then starve each other: 3 training steps
# per second each where one alone does 138. With a short spin each gets 56, and one alone 143 (one printout of
# benchmarks/threads.py). Read when torch loads, which is after this.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__version__ = "0.1.0"
