"""Live views of cached artifacts for JupyterLab, and the same views as static figures for batch runs.

``artifacts`` finds what is cached; ``quantizer``, ``annealing``, ``det``, ``resources``, ``network`` and ``monitor``
compute what is shown from a state (pure functions, measured by benchmarks/explore.py); ``widgets`` wires them to
sliders; ``views`` is what a notebook calls; ``live`` decides which of the two.
"""

from kwsbench.reports.explore.artifacts import Shelf, open_shelf, resolve_root
from kwsbench.reports.explore.live import is_live
from kwsbench.reports.explore.views import (
    annealing_explorer,
    det_explorer,
    network_explorer,
    quantizer_explorer,
    resource_explorer,
    training_monitor,
)

__all__ = [
    "Shelf",
    "annealing_explorer",
    "det_explorer",
    "is_live",
    "network_explorer",
    "open_shelf",
    "quantizer_explorer",
    "resolve_root",
    "resource_explorer",
    "training_monitor",
]
