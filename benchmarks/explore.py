"""How long the explorers take to answer, in ms: the view of a random state, and the view with its figure updated.

    python benchmarks/explore.py [ROOT] [STATES]

ROOT holds cached artifacts (`kwsbench run --profile smoke` makes some). Every view is warmed by one state first:
loading a model or compiling a loop happens once, when the notebook shows the explorer. Prints Markdown.
"""

from __future__ import annotations

import os
import platform
import sys
import time

import numpy as np
import plotly.graph_objects as go

from kwsbench.models.space import Description, write
from kwsbench.quantizers import QUANTIZERS
from kwsbench.reports.explore import annealing, det, network, quantizer, resources
from kwsbench.reports.explore.artifacts import open_shelf
from kwsbench.reports.explore.panels import apply, redraw


def measure(view, draw, content, states, update=apply) -> tuple[np.ndarray, np.ndarray]:
    """Milliseconds of each state: view alone, and view with ``update`` of the figure by ``content``."""
    figure = go.FigureWidget(draw(view(states[0])))
    alone, whole = [], []
    for state in states[1:]:
        start = time.perf_counter()
        shown = view(state)
        middle = time.perf_counter()
        update(figure, content(shown))
        alone.append(middle - start)
        whole.append(time.perf_counter() - start)
    return 1e3 * np.array(alone), 1e3 * np.array(whole)


def main(root: str = "runs", count: int = 200) -> None:
    rng = np.random.default_rng(0)
    shelf = open_shelf(root)
    study = next(iter(shelf.studies.values()), None)
    if study is None:
        raise SystemExit(f"nothing is cached under {root}; kwsbench run --profile smoke makes some")
    detections, res = det.Detections(study), resources.Resources(study)
    names = list(detections.systems)[: det.MAX_SYSTEMS]
    low, high = detections.threshold_range()
    methods = list(QUANTIZERS)
    weights = quantizer.Weights("layer0", res.weights[0])
    annealings = annealing.Annealings(shelf)

    def quantizer_state():
        method, bits = str(rng.choice(methods)), int(rng.integers(1, 9))
        return quantizer.QuantizerState(method, bits, bool(rng.integers(2)), float(rng.uniform(0.05, 1.5)))

    def det_state():
        threshold, smoothing = float(rng.uniform(low, high)), int(rng.integers(1, 21))
        return det.DetState(tuple(names), str(rng.choice(names)), threshold, smoothing, float(rng.uniform(0.1, 3)))

    def annealing_state():
        system, record = list(annealings.records.items())[int(rng.integers(len(annealings.records)))]
        layer, snapshot = str(rng.choice(list(record.layers))), int(rng.integers(len(record.step)))
        return annealing.AnnealingState(system, layer, snapshot)

    def resource_states():
        # As sliders do: one layer at a time; what a width was once computed for stays.
        bits = [5] * len(res.weights)
        for _ in range(count + 1):
            bits[int(rng.integers(len(bits)))] = int(rng.integers(1, 9))
            yield resources.ResourceState("tanh", tuple(bits))

    def network_state():
        cells = [network.picked(*map(int, (rng.choice((0, 3, 5, 7)), rng.integers(1, 7), False))) for _ in range(6)]
        written = write(Description("mfcc10", int(rng.integers(8, 73)), tuple(cells), 64))
        return network.NetworkState(written, "", *map(int, rng.integers(1, 9, 2)))

    rows = {
        f"quantizer, {weights.values.size:,} weights": measure(
            lambda s: quantizer.view(weights, s), quantizer.draw, quantizer.content,
            [quantizer_state() for _ in range(count + 1)],
        ),
        f"DET, {len(names)} systems, {len(detections.scores(names[0]).values):,} scores each": measure(
            detections.view, det.draw, det.content, [det_state() for _ in range(count + 1)]
        ),
        f"resources, {len(res.weights)} layers": measure(
            res.view, resources.draw, resources.content, list(resource_states())
        ),
        "network, 6 cells": measure(
            network.view, network.draw, network.draw, [network_state() for _ in range(count + 1)], redraw
        ),
    }  # fmt: skip
    if annealings.records:
        rows[f"annealing, {len(annealings.records)} systems"] = measure(
            annealings.view, annealing.draw, annealing.content, [annealing_state() for _ in range(count + 1)]
        )
    print(f"{count} random states; {study.label}; Python {platform.python_version()}, {os.cpu_count()} cores\n")
    print("| explorer | view, median ms | view, 95% ms | with update, median ms | with update, 95% ms |")
    print("|---|---:|---:|---:|---:|")
    for name, (alone, whole) in rows.items():
        figures = [np.median(alone), np.percentile(alone, 95), np.median(whole), np.percentile(whole, 95)]
        print(f"| {name} | {' | '.join(f'{v:.1f}' for v in figures)} |")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(*arguments[:1], *map(int, arguments[1:2]))
