"""Folders of finished runs for tests, made without executing anything."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import numpy as np
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from kwsbench.reports.show import PLOTLY_MIME
from kwsbench.reports.status import Failure, RunStatus

LAYERS = ("features", "int8 windows", "layer0: weights and constants", "layer0: outputs", "layer1: outputs")
CAPTION = {"kwsbench": {"role": "caption"}}


def made_run(
    report: Path,
    name: str,
    notebook: str = "04_stage_two.ipynb",
    parameters: dict | None = None,
    figures: dict | None = None,
    systems: list | None = None,
    outputs: list | None = None,
    **status,
) -> Path:
    """A run's folder under ``report/runs``; return it."""
    folder = report / "runs" / name
    folder.mkdir(parents=True)
    figures = {"fdr_percent": 5.0} if figures is None else figures
    fields = {
        "name": name,
        "notebook": notebook,
        "title": "Stage 2: what does it cost?",
        "state": "passed",
        "profile": "smoke",
        "parameters": parameters or {},
        "given": tuple(parameters or {}),
        "started_utc": "2026-01-01T00:00:00+00:00",
        "seconds": 1.5,
        "key_figures": figures,
        "versions": {"kwsbench": "0.1.0"},
        "notebook_sha256": "ab" * 32,
    }
    RunStatus(**{**fields, **status}).save(folder / "status.json")
    (folder / "metrics.json").write_text(json.dumps({"figures": figures, "systems": systems or []}))
    cells = [new_markdown_cell("# A run"), new_code_cell("show()", outputs=outputs or [])]
    nbformat.write(new_notebook(cells=cells), folder / "notebook.ipynb")
    return folder


def failed(kind: str = "ValueError", message: str = "no such corpus", state: str = "failed") -> dict:
    """What made_run takes for a run that did not pass."""
    return {"state": state, "failure": Failure(kind, message, "Traceback ..."), "figures": {}}


def record(
    system: str,
    kind: str = "stage_two",
    fdr: float | None = 0.05,
    size: int | None = 100_000,
    seed: int = 0,
    changed: str = "",
    frr: float = 0.04,
) -> dict:
    """A record of a system (training.record); ``changed`` names a layer from which on its digests are its own."""
    parts = LAYERS.index(changed) if changed else len(LAYERS)
    digests = [f"{i:016x}" if i < parts else f"{i:08x}{abs(hash(system + changed)) % 16**8:08x}" for i in range(5)]
    rates = np.linspace(0, 1, 30)
    return {
        "system": system,
        "kind": kind,
        "keyword": "computer",
        "seed": seed,
        "bits": None,
        "method": None,
        "bytes": size,
        "bytes_basis": "modelled",
        "point": {"threshold": 1.25, "frr": frr, "fdr": fdr, "fa_per_hour": 2.5},
        "curve": {
            "frr": rates.tolist(),
            "fa_per_hour": (1000 * (1 - rates) ** 4).tolist(),
            "fdr": [*(0.5 * (1 - rates[:-1])).tolist(), None],
            "negative_hours": 0.5,
            "n_positives": 20,
        },
        "layers": [] if kind in ("float", "control", "stage_one") else [
            {"layer": layer, "sha256": digest} for layer, digest in zip(LAYERS, digests, strict=True)
        ],
    }  # fmt: skip


def table(caption: str, rows: list[list[str]]) -> list:
    """Outputs of a notebook: a table, whose first row holds the titles, and its caption."""
    head, *body = rows
    html = "<table><thead><tr>" + "".join(f"<th>{t}</th>" for t in head) + "</tr></thead><tbody>"
    html += "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in body) + "</tbody></table>"
    return [
        new_output("display_data", data={"text/html": html, "text/plain": "[table]"}),
        new_output("display_data", data={"text/markdown": f"*{caption}*", "text/plain": caption}, metadata=CAPTION),
    ]


def plot(title: str = "A plot") -> list:
    """Outputs of a notebook: a figure and its caption."""
    figure = {
        "data": [{"type": "scatter", "x": [1, 2, 3], "y": [1, 4, 9], "name": "squares"}],
        "layout": {"title": {"text": title}, "xaxis": {"title": {"text": "x"}}, "yaxis": {"title": {"text": "y"}}},
    }
    return [
        new_output("display_data", data={PLOTLY_MIME: figure, "text/plain": "[plot]"}),
        new_output("display_data", data={"text/markdown": "*A caption*", "text/plain": "A caption"}, metadata=CAPTION),
    ]
