"""What the notebook calls: each shows a live explorer, or the same view as a static figure with its caption.

All return the view that was shown, for the conclusion; None where nothing is cached to show.
"""

from __future__ import annotations

from IPython.display import Markdown, display

from kwsbench.reports.centroids import centroid_paths
from kwsbench.reports.explore import annealing, det, monitor, network, quantizer, resources
from kwsbench.reports.explore.artifacts import HOW_TO_GET_RUNS, Shelf, Study
from kwsbench.reports.figures import training_figure
from kwsbench.reports.show import show, show_table
from kwsbench.reports.tables import html_table

STATIC_MISTAKES = 10


def quantizer_explorer(shelf: Shelf, live: bool) -> quantizer.QuantizerView:
    """The quantizer over any layer of any cached system, or over synthetic weights."""
    if live:
        from kwsbench.reports.explore.widgets import QuantizerExplorer

        explorer = QuantizerExplorer(shelf)
        display(explorer.widget)
        return explorer.view
    sources = quantizer.sources(shelf)
    source = next((s for s in sources if "stage 2" in s), quantizer.SYNTHETIC)
    weights = quantizer.weights_of(shelf, source, sources[source][0])
    v = quantizer.view(weights, weights.trained or quantizer.QuantizerState())
    show(
        quantizer.draw(v),
        f"{v.name}: {v.codes_used} of {len(v.codes)} codes carry {v.entropy_bits:.2f} bits per weight at "
        f"{v.sqnr_db:.1f} dB. The curves over range and width are of at most {quantizer.SAMPLE:,} weights.",
    )
    best = quantizer.RANGES[int(v.sqnr_by_range.argmax())]
    rows = [
        {"width_bits": bits, "sqnr_db": float(db), "levels": len(quantizer.CODEBOOKS[v.state.method](bits).levels)}
        for bits, db in enumerate(v.sqnr_by_bits, 1)
    ]
    show_table(html_table(rows), f"SQNR by width at this range; at {v.state.bits} bits the best range is {best:.2f}.")
    return v


def annealing_explorer(shelf: Shelf, live: bool) -> annealing.AnnealingView | None:
    """What recorded stages did to their centroids, snapshot by snapshot."""
    found = annealing.Annealings(shelf)
    if not found.records:
        display(Markdown("\n\n".join([annealing.NO_RECORD, *found.left_out])))
        return None
    if live:
        from kwsbench.reports.explore.widgets import AnnealingExplorer

        explorer = AnnealingExplorer(found)
        display(explorer.widget)
        return explorer.view
    state = found.start()
    v = found.view(state)
    hard_from = v.steps if v.hard_from is None else v.hard_from
    show(
        annealing.slider(v),
        f"The curve at {len(v.step)} snapshots of {v.steps:,} steps, hard from step {hard_from:,}. {v.told()}",
    )
    name = f"{state.system}, {state.layer}"
    show(
        centroid_paths(v.step, v.layer.levels, hard_from, f"{name}: paths of the levels"),
        f"At the end {v.distinct} levels differ and carry {v.entropy_bits:.2f} of {v.bits:g} bits per weight.",
    )
    rows = annealing.rows(found, state.system)
    show_table(html_table(rows), f"{state.system}: every layer at the end of its stage, and what was found.")
    return v


def det_explorer(shelf: Shelf, live: bool) -> det.DetView | None:
    """DET curves of the first study's systems, an operating point, and its misses and false accepts."""
    study = _study(shelf)
    if study is None:
        return None
    if live:
        from kwsbench.reports.explore.widgets import DetExplorer

        explorer = DetExplorer(study)
        display(explorer.widget)
        return explorer.view
    detections = det.Detections(study)
    v = detections.view(detections.start())
    show(
        det.draw(v),
        f"Bands: 95% Wilson intervals of the FRR. The cross is {v.state.inspected} at the threshold that validation "
        "chose, with the 95% intervals of both rates. A count of zero is drawn at half a count.",
    )
    show_table(html_table(v.rows()), f"{v.state.inspected}: every rate beside its counts, on the test split.")
    worst = [("miss", m) for m in v.misses[:STATIC_MISTAKES]]
    worst += [("false accept", m) for m in v.false_accepts[:STATIC_MISTAKES]]
    if worst:
        rows = [
            {"mistake": kind, "clip": m.path, "label": m.label, "score (log odds)": m.score, "at_seconds": m.seconds}
            for kind, m in worst
        ]
        show_table(html_table(rows), f"The worst mistakes, at most {STATIC_MISTAKES} of each kind.")
    return v


def resource_explorer(shelf: Shelf, live: bool) -> resources.ResourceView | None:
    """Bytes and modelled noise of a width per layer, and what integer systems measured."""
    study = _study(shelf)
    if study is None:
        return None
    if live:
        from kwsbench.reports.explore.widgets import ResourceExplorer

        explorer = ResourceExplorer(study)
        display(explorer.widget)
        return explorer.view
    found = resources.Resources(study)
    found.read_measured()
    v = found.view(found.start())
    show(
        resources.draw(v),
        f"{v.total_bytes / 1000:.1f} kB per stream at these widths (packed weights and all else); the SQNR is "
        "*modelled* from the weights alone, the points are measured on the test split with 95% intervals.",
    )
    rows = [
        {"layer": f"layer{name}", "width_bits": bits, "packed_bytes": int(size), "sqnr_db": float(db)}
        for name, bits, size, db in zip(v.layers, v.state.bits, v.layer_bytes, v.layer_sqnr_db, strict=True)
    ]
    basis = {"packed_bytes": "measured", "sqnr_db": "modelled"}
    show_table(html_table(rows, basis=basis), f"By layer; together {v.sqnr_db:.1f} dB, noise added over layers.")
    return v


def network_explorer(shelf: Shelf, live: bool) -> network.NetworkView:
    """A convolutional network by its notation: drawn, and what each block costs."""
    if live:
        from kwsbench.reports.explore.widgets import NetworkExplorer

        explorer = NetworkExplorer(shelf.root)
        display(explorer.widget)
        return explorer.view
    v = network.view(network.NetworkState())
    s, labels = v.state, len(v.network.labels)
    show(
        network.draw(v),
        "A box per block, as tall as it has channels; above it the frames per second of audio; an arc is a residual "
        f"addition. {labels} labels. `{v.command}` trains it.",
    )
    show_table(
        html_table(v.rows, network.TITLES, network.BASIS),
        f"By block, weights at {s.weight_bits} and activations at {s.activation_bits} bits; packed with padding, "
        "constants not counted. MACs and activations are those that the last logits of a clip of one second need.",
    )
    table = html_table([v.totals()], basis=network.TOTALS_BASIS)
    show_table(table, "The whole network; a stream gives logits after every frame of its last layer.")
    return v


def training_monitor(shelf: Shelf, live: bool, data: str, keyword: str, profile: str) -> None:
    """Starts, stops, resumes and follows training; in batch the histories of what is trained."""
    if live:
        from kwsbench.reports.explore.widgets import TrainingMonitor

        display(TrainingMonitor(str(shelf.root), data, keyword, profile).widget)
        return
    study = _study(shelf)
    trained = {} if study is None else monitor.histories(study)
    if trained:
        fig = training_figure(trained, "Training of the cached systems")
        show(fig, f"Loss and share of wrong windows of {len(trained)} systems; each stage starts from the one before.")


def _study(shelf: Shelf) -> Study | None:
    study = next(iter(shelf.studies.values()), None)
    if study is None:
        display(Markdown(HOW_TO_GET_RUNS))
    return study
