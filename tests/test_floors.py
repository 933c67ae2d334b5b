"""The floors of the house: imports only point down, and what runs a saved program needs no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "kwsbench"

# The longest matching name decides. CONTRIBUTING.md draws the same map.
FLOORS = {
    "kwsbench.files": 0,
    "kwsbench.processes": 0,
    "kwsbench.beam": 0,
    "kwsbench.arithmetic": 0,
    "kwsbench.data": 1,
    "kwsbench.features": 1,
    "kwsbench.quantizers": 1,
    "kwsbench.metrics": 1,
    "kwsbench.integer": 1,
    "kwsbench.integer.program": 1,
    "kwsbench.models": 2,
    "kwsbench.integer.reference": 2,
    "kwsbench.integer.recognizer_reference": 2,
    "kwsbench.integer.listen": 2,
    "kwsbench.integer.drawn": 2,
    "kwsbench.integer.drawn_convolutional": 2,
    "kwsbench.integer.convolution_reference": 2,
    "kwsbench.integer.convolution_run": 2,
    "kwsbench.integer.packed": 2,
    "kwsbench.integer.replay": 2,
    "kwsbench.integer.conformer": 2,
    "kwsbench.integer.packed_conformer": 2,
    "kwsbench.integer.lower_conformer": 3,
    "kwsbench.integer.kernels": 2,
    "kwsbench.integer.run": 2,
    "kwsbench.export": 2,
    "kwsbench.resources": 2,
    "kwsbench.quantizers.attach": 3,
    "kwsbench.quantizers.recognizer": 3,
    "kwsbench.quantizers.fused": 2,
    "kwsbench.quantizers.activation": 2,
    "kwsbench.quantizers.width": 2,
    "kwsbench.quantizers.diffq": 2,
    "kwsbench.quantizers.convolutional": 3,
    "kwsbench.quantizers.learned": 3,
    "kwsbench.quantizers.budget": 3,
    "kwsbench.integer.lower_convolutional": 3,
    "kwsbench.integer.lower": 3,
    "kwsbench.integer.lower_recognizer": 3,
    "kwsbench.training": 4,
    "kwsbench.reports": 4,
    "kwsbench.sweeps": 4,
    "kwsbench.completion": 0,
    "kwsbench.doctor": 5,
    "kwsbench.lab": 4,
    "kwsbench.cli": 5,
}

TORCH_FREE = (
    "kwsbench.arithmetic",
    "kwsbench.beam",
    "kwsbench.data",
    "kwsbench.features",
    "kwsbench.metrics",
    "kwsbench.resources",
    "kwsbench.export",
    "kwsbench.reports",
    "kwsbench.integer.program",
    "kwsbench.integer.reference",
    "kwsbench.integer.recognizer",
    "kwsbench.integer.recognizer_reference",
    "kwsbench.integer.listen",
    "kwsbench.integer.drawn",
    "kwsbench.integer.drawn_convolutional",
    "kwsbench.integer.convolution",
    "kwsbench.integer.convolution_reference",
    "kwsbench.integer.convolution_run",
    "kwsbench.integer.packed",
    "kwsbench.integer.replay",
    "kwsbench.integer.conformer",
    "kwsbench.integer.packed_conformer",
    "kwsbench.integer.kernels",
    "kwsbench.integer.run",
)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(p): p for p in sorted(PACKAGE.rglob("*.py"))}


def longest(name: str, prefixes) -> str | None:
    found = [p for p in prefixes if name == p or name.startswith(p + ".")]
    return max(found, key=len, default=None)


def imports(name: str, path: Path) -> set[str]:
    """Every module that `path` imports, lazily or not, by absolute name."""
    found = set()
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            found.add(base)
            found.update(f"{base}.{alias.name}" for alias in node.names if f"{base}.{alias.name}" in MODULES)
    return found


def test_every_module_has_a_floor():
    homeless = [m for m in MODULES if m != "kwsbench" and longest(m, FLOORS) is None]
    assert not homeless, f"give these a floor in {Path(__file__).name} and in CONTRIBUTING.md: {homeless}"


@pytest.mark.parametrize("name", [m for m in MODULES if m != "kwsbench"])
def test_imports_only_point_down(name):
    floor = FLOORS[longest(name, FLOORS)]
    for target in imports(name, MODULES[name]):
        home = longest(target, FLOORS)
        if home is not None:
            assert FLOORS[home] <= floor, f"{name} (floor {floor}) imports {target} (floor {FLOORS[home]})"


def test_no_import_cycles():
    """Rooms on one floor may use each other, but never in a circle."""
    graph = {m: {t for t in imports(m, p) if t in MODULES and t != m} for m, p in MODULES.items()}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail[trail.index(module) :], module))
        if module not in done:
            for target in graph[module]:
                # A package's __init__ that gathers its own modules is not a circle.
                if not module.startswith(target + "."):
                    visit(target, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("name", [m for m in MODULES if longest(m, TORCH_FREE)])
def test_no_torch_is_named(name):
    named = {t.partition(".")[0] for t in imports(name, MODULES[name])}
    assert "torch" not in named, f"{name} imports torch"


def test_the_runtime_loads_without_torch():
    """Scoring, exporting and measuring a saved program: no torch, even through what those modules import."""
    wanted = sorted(m for m in MODULES if longest(m, TORCH_FREE))
    # The explorers open models for a person at a notebook; no report is made through them.
    wanted = [m for m in wanted if not longest(m, ("kwsbench.reports.explore",))]
    assert {"kwsbench.arithmetic.codebook", "kwsbench.integer.program"} <= set(wanted)
    code = (
        f"import importlib, sys\nfor m in {wanted!r}: importlib.import_module(m)\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
