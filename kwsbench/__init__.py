"""kwsbench: a workbench for sub-8-bit keyword spotting."""

__version__ = "0.1.0"
