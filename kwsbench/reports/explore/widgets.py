"""The live explorers: widgets wired to the arithmetic of their modules. Nothing is computed here.

Each is an object with ``widget`` (what is displayed), ``figure`` (a FigureWidget whose traces are updated in place)
and its controls as attributes. A mistake in a callback is told below the controls instead of vanishing in a log.
"""

from __future__ import annotations

import asyncio
import functools
import html
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ipywidgets as w

from kwsbench.data.audio import SAMPLE_RATE
from kwsbench.models.space import Cell, Description, parse, write
from kwsbench.quantizers import QUANTIZERS
from kwsbench.reports.explore import annealing, det, monitor, network, quantizer, resources
from kwsbench.reports.explore.artifacts import Shelf, Study
from kwsbench.reports.explore.live_figure import LiveFigure
from kwsbench.reports.explore.panels import apply, redraw
from kwsbench.reports.show import wav_bytes
from kwsbench.reports.tables import html_table
from kwsbench.training import background
from kwsbench.training.background import Job

# One layout of many widgets: never changed. They have a margin of 2 px on each side.
WIDE = w.Layout(width="calc(100% - 4px)")
CONTROLS = w.Layout(flex="0 0 348px", width="348px", overflow="visible")
FIGURE = w.Layout(flex="1 1 480px", min_width="420px")
STYLE = {"description_width": "132px"}
POLL_SECONDS = 0.5
SNAPSHOT_MS = 250  # while it plays
# Plotly measures its container, which would otherwise grow with the plot.
MONOSPACE = "<style>.kwsbench-notation input { font-family: var(--jp-code-font-family, monospace); }</style>"
FIT = "<style>.kwsbench-figure > .js-plotly-plot { flex: 1 1 0; min-width: 0; width: 100%; }</style>"


def _slider(kind: type, description: str, tip: str, **rest: Any) -> Any:
    return kind(description=description, tooltip=tip, layout=WIDE, style=STYLE, **rest)


def _dropdown(description: str, options: Any, **rest: Any) -> w.Dropdown:
    return w.Dropdown(description=description, options=options, layout=WIDE, style=STYLE, **rest)


def _html_table() -> w.HTML:
    widget = w.HTML(layout=WIDE)
    widget.add_class("jp-RenderedHTMLCommon")  # the look of tables in JupyterLab
    return widget


def _button(description: str, icon: str, tip: str) -> w.Button:
    return w.Button(description=description, icon=icon, tooltip=tip, layout=w.Layout(width="auto"))


def _side_by_side(controls: list[w.Widget], figure: LiveFigure) -> w.Box:
    box = w.Box([figure], layout=FIGURE)
    box.add_class("kwsbench-figure")
    style = w.HTML(FIT, layout=w.Layout(display="none"))
    row = [style, w.VBox(controls, layout=CONTROLS), box]
    return w.Box(row, layout=w.Layout(flex_flow="row wrap", width="100%"))


class _Explorer:
    """What the explorers share: quiet changes of their own controls, and mistakes told."""

    def __init__(self) -> None:
        self.status = w.HTML(layout=WIDE)
        self._quiet = False

    @contextmanager
    def quietly(self):
        """Controls set within the block start no update."""
        before, self._quiet = self._quiet, True
        try:
            yield
        finally:
            self._quiet = before

    def on(self, control: w.Widget, call: Callable[[], Any]) -> None:
        """Call when the value of a control changes."""
        control.observe(self.guarded(call), names="value")

    def guarded(self, call: Callable[[], Any]) -> Callable[..., None]:
        @functools.wraps(call)
        def guarded(*_: Any) -> None:
            if self._quiet:
                return
            try:
                call()
            except Exception as error:
                self.tell(f"{type(error).__name__}: {error}")

        return guarded

    def tell(self, message: str) -> None:
        self.status.value = html.escape(message).replace("**", "")


class QuantizerExplorer(_Explorer):
    """Sliders for the quantizer's six panels."""

    def __init__(self, shelf: Shelf):
        super().__init__()
        self.shelf = shelf
        self.sources = quantizer.sources(shelf)
        first = next((s for s in self.sources if "stage 2" in s), quantizer.SYNTHETIC)
        self.source = _dropdown("weights of", list(self.sources), value=first)
        self.layer = _dropdown("layer", self.sources[first])
        self.method = _dropdown("method", list(QUANTIZERS), value="tanh")
        self.bits = _slider(w.IntSlider, "width (bits)", "bits per weight", min=1, max=8, value=4)
        tip = "the largest level, as a share of the largest weight"
        self.clip = _slider(w.FloatSlider, "range (× largest)", tip, min=0.05, max=1.5, step=0.01, value=0.6)
        self.per_channel = w.Checkbox(description="one scale per row", value=False, indent=False, layout=WIDE)
        self.weights = quantizer.weights_of(shelf, first, self.layer.value)
        self._take_trained()
        self.view = quantizer.view(self.weights, self.state)
        self.figure = LiveFigure(quantizer.draw(self.view))
        self.on(self.source, self._other_source)
        self.on(self.layer, self._other_weights)
        for control in (self.method, self.bits, self.clip, self.per_channel):
            self.on(control, self.update)
        controls = [self.source, self.layer, self.method, self.bits, self.clip, self.per_channel, self.status]
        self.widget = _side_by_side(controls, self.figure)

    @property
    def state(self) -> quantizer.QuantizerState:
        return quantizer.QuantizerState(self.method.value, self.bits.value, self.per_channel.value, self.clip.value)

    def update(self) -> None:
        self.view = quantizer.view(self.weights, self.state)
        apply(self.figure, quantizer.content(self.view))
        self.tell("")

    def _other_source(self) -> None:
        with self.quietly():
            self.layer.options = self.sources[self.source.value]
            self.layer.value = self.layer.options[0]
        self._other_weights()

    def _other_weights(self) -> None:
        self.weights = quantizer.weights_of(self.shelf, self.source.value, self.layer.value)
        self._take_trained()
        self.update()

    def _take_trained(self) -> None:
        """A trained layer is first shown as it was trained."""
        trained = self.weights.trained
        if trained is not None:
            with self.quietly():
                self.method.value, self.bits.value = trained.method, trained.bits
                self.per_channel.value, self.clip.value = trained.per_channel, round(trained.clip, 2)


class AnnealingExplorer(_Explorer):
    """A slider over the snapshots of a recorded stage, which also plays."""

    def __init__(self, annealings: annealing.Annealings):
        super().__init__()
        self.annealings = annealings
        first = annealings.start()
        self.system = _dropdown("stage of", list(annealings.records), value=first.system)
        self.layer = _dropdown("layer", list(annealings.records[first.system].layers), value=first.layer)
        # A slider over what is named, its steps; the button counts them.
        self.snapshot = _slider(
            w.SelectionSlider, "training step", "a snapshot before this step", options=[("0", 0)], value=0
        )
        self.play = w.Play(interval=SNAPSHOT_MS, min=0, max=0, show_repeat=False)
        self._take_steps()
        self.link = w.jslink((self.play, "value"), (self.snapshot, "index"))
        self.view = annealings.view(self.state)
        self.figure = LiveFigure(annealing.draw(self.view))
        self.on(self.system, self._other_system)
        for control in (self.layer, self.snapshot):
            self.on(control, self.update)
        self.tell(self.view.told())
        self.widget = _side_by_side([self.system, self.layer, self.snapshot, self.play, self.status], self.figure)

    @property
    def state(self) -> annealing.AnnealingState:
        return annealing.AnnealingState(self.system.value, self.layer.value, self.snapshot.value)

    def update(self) -> None:
        self.view = self.annealings.view(self.state)
        apply(self.figure, annealing.content(self.view))
        self.tell(self.view.told())

    def _other_system(self) -> None:
        with self.quietly():
            layers, layer = list(self.annealings.records[self.system.value].layers), self.layer.value
            self.layer.options = layers
            self.layer.value = layer if layer in layers else layers[0]
            self._take_steps()
        self.update()

    def _take_steps(self) -> None:
        """The snapshots of the chosen system, the last of them shown."""
        steps = self.annealings.records[self.system.value].step
        self.snapshot.options = [(f"{int(step):,}", i) for i, step in enumerate(steps)]
        self.snapshot.value = self.play.max = len(steps) - 1
        self.play.value = self.play.max


class DetExplorer(_Explorer):
    """Sliders for the detector, the overlay, and the mistakes of the inspected system, to be heard."""

    def __init__(self, study: Study):
        super().__init__()
        self.detections = det.Detections(study)
        first = self.detections.start()
        names = list(self.detections.systems)
        low, high = self.detections.threshold_range()
        self.systems = w.SelectMultiple(
            description="overlaid",
            options=names,
            value=first.systems,
            rows=min(6, len(names)),
            layout=WIDE,
            style=STYLE,
        )
        self.inspected = _dropdown("inspected", list(first.systems), value=first.inspected)
        tip = "scores at or above it fire; 0 means that the keyword is as likely as not"
        self.threshold = _slider(
            w.FloatSlider, "threshold (log odds)", tip, min=low, max=high, step=0.05, value=first.threshold
        )
        frame_ms = 1000 * self.detections.scores(first.inspected).frame_seconds
        self.smoothing = _slider(
            w.IntSlider, "smoothing (frames)", f"frames of {frame_ms:.0f} ms that are averaged", min=1, max=20,
            value=first.smoothing_frames,
        )  # fmt: skip
        self.refractory = _slider(
            w.FloatSlider, "refractory time (s)", "deaf for so long after an event", min=0.1, max=3, step=0.1,
            value=first.refractory_seconds,
        )  # fmt: skip
        self.table = _html_table()
        self.kind = w.ToggleButtons(options=["misses", "false accepts"], style={"button_width": "120px"})
        self.mistakes = w.Select(rows=6, layout=WIDE)
        self.play = _button("play the mixture", "play", "the audio as the test set heard it")
        self.player = w.VBox(layout=WIDE)  # empty until something is played
        self.view = self.detections.view(self.state)
        self.figure = LiveFigure(det.draw(self.view))
        self._show_point()
        for control in (self.threshold, self.smoothing, self.refractory):
            self.on(control, self.update)
        self.on(self.systems, self._other_systems)
        self.on(self.inspected, self._other_inspected)
        self.on(self.kind, self._show_mistakes)
        self.play.on_click(self.guarded(self._play))
        for i, trace in enumerate(self.figure.data[det.MAX_SYSTEMS : 2 * det.MAX_SYSTEMS]):
            trace.on_click(functools.partial(self._clicked, i))
        controls = [self.systems, self.inspected, self.threshold, self.smoothing, self.refractory, self.kind]
        controls += [self.mistakes, self.play, self.player, self.status]
        self.widget = w.VBox([_side_by_side(controls, self.figure), self.table])

    @property
    def state(self) -> det.DetState:
        return det.DetState(
            tuple(self.systems.value),
            self.inspected.value,
            self.threshold.value,
            self.smoothing.value,
            self.refractory.value,
        )

    def update(self) -> None:
        self.view = self.detections.view(self.state)
        apply(self.figure, det.content(self.view))
        self._show_point()
        self.tell("")

    def _show_point(self) -> None:
        self.table.value = html_table(self.view.rows())
        self._show_mistakes()

    def _show_mistakes(self) -> None:
        chosen = self.view.misses if self.kind.value == "misses" else self.view.false_accepts
        self.mistakes.options = [(m.text(), i) for i, m in enumerate(chosen)]
        self.mistakes.index = 0 if chosen else None
        self.play.disabled = not chosen

    def _play(self) -> None:
        chosen = self.view.misses if self.kind.value == "misses" else self.view.false_accepts
        if self.mistakes.value is None:
            self.tell("choose a clip in the list first")
            return
        mistake = chosen[self.mistakes.value]
        sound = wav_bytes(self.detections.audio(mistake), SAMPLE_RATE)
        self.player.children = [w.Audio(value=sound, format="wav", autoplay=True, loop=False, layout=WIDE)]
        self.tell(f"as the test set heard it: {mistake.path}")

    def _other_systems(self) -> None:
        chosen = list(self.systems.value)
        if not chosen or len(chosen) > det.MAX_SYSTEMS:
            self.tell(f"choose one to {det.MAX_SYSTEMS} systems (Ctrl or Shift for several)")
            return
        with self.quietly():
            inspected = self.inspected.value
            self.inspected.options = chosen
            self.inspected.value = inspected if inspected in chosen else chosen[0]
        self._other_inspected() if inspected not in chosen else self.update()

    def _other_inspected(self) -> None:
        with self.quietly():
            self.threshold.value = self.detections.validation_threshold(self.inspected.value)
        self.update()

    def _clicked(self, i: int, trace: Any, points: Any, _: Any) -> None:
        if not points.point_inds:
            return
        threshold = float(trace.customdata[points.point_inds[0]][0])
        with self.quietly():
            self.inspected.value = self.systems.value[i]
            self.threshold.value = min(max(threshold, self.threshold.min), self.threshold.max)
        self.guarded(self.update)()


class ResourceExplorer(_Explorer):
    """A width slider per layer, and a button that measures."""

    def __init__(self, study: Study):
        super().__init__()
        self.resources = resources.Resources(study)
        self.resources.read_measured()
        first = self.resources.start()
        self.method = _dropdown("method", list(QUANTIZERS), value=first.method)
        self.bits = [
            _slider(w.IntSlider, f"layer{i} (bits)", f"bits per weight of {rows} × {columns}", min=1, max=8, value=b)
            for i, (b, (rows, columns)) in enumerate(
                zip(first.bits, (m.shape for m in self.resources.weights), strict=True)
            )
        ]
        self.measure = _button(
            "measure with the integer kernel", "play", "quantize without training, lower, score the whole test split"
        )
        self.table = _html_table()
        self.view = self.resources.view(self.state)
        self.figure = LiveFigure(resources.draw(self.view))
        for control in (self.method, *self.bits):
            self.on(control, self.update)
        self.measure.on_click(self.guarded(self._measure))
        self.widget = w.VBox(
            [_side_by_side([self.method, *self.bits, self.measure, self.status], self.figure), self.table]
        )

    @property
    def state(self) -> resources.ResourceState:
        return resources.ResourceState(self.method.value, tuple(slider.value for slider in self.bits))

    def update(self) -> None:
        self.view = self.resources.view(self.state)
        apply(self.figure, resources.content(self.view))

    def _measure(self) -> None:
        self.measure.disabled = True
        self.tell("quantizing, lowering, scoring the test split ...")
        try:
            measured = self.resources.evaluate(self.state)
            self.update()
            self.table.value = html_table(det.operating_rows({measured.name: measured.point}))
            self.tell(f"{measured.name}: measured on the whole test split in {measured.seconds:.1f} s")
        finally:
            self.measure.disabled = False


class CellRow:
    """The pickers of one cell."""

    def __init__(self, number: int, changed: Callable[[], Any], explorer: _Explorer):
        narrow = w.Layout(width="84px")
        self.kernel = w.Dropdown(options=[("skip", 0)], value=0, layout=narrow)
        self.expansion = w.Dropdown(options=[("e1", 1)], value=1, layout=narrow)
        self.strided = w.Checkbox(description="stride 2", indent=False, layout=w.Layout(width="90px"))
        for control in (self.kernel, self.expansion, self.strided):
            explorer.on(control, changed)
        label = w.Label(f"cell {number}", layout=w.Layout(width="54px"))
        row = w.Layout(flex="0 0 auto")
        self.widget = w.HBox([label, self.kernel, self.expansion, self.strided], layout=row)

    @property
    def cell(self) -> Cell | None:
        return network.picked(self.kernel.value, self.expansion.value, self.strided.value)

    def take(self, cell: Cell | None) -> None:
        """Say what a notation says; an empty cell keeps its other pickers for when it is filled."""
        kernel = cell.kernel if cell else 0
        kernels = network.offered(network.KERNELS, kernel or network.KERNELS[0])
        self.kernel.options = [("skip", 0), *((f"kernel {k}", k) for k in kernels)]
        self.kernel.value = kernel
        expansion = cell.expansion if cell else self.expansion.value
        self.expansion.options = [(f"e{e}", e) for e in network.offered(network.EXPANSIONS, expansion)]
        self.expansion.value = expansion
        if cell:
            self.strided.value = cell.strided
        self.expansion.disabled = self.strided.disabled = cell is None


class NetworkExplorer(_Explorer):
    """A notation in a field, pickers that write it, networks by name; two sliders of widths."""

    def __init__(self, root: Path):
        super().__init__()
        self.menu, self.found = network.menu(), network.found(root)
        names = [("as written", ""), *((name, name) for name in (*self.menu, *self.found))]
        self.chosen = _dropdown("network", names, value="")
        self.field = w.Text(description="notation", value=network.START, layout=WIDE, style=STYLE)
        self.field.add_class("kwsbench-notation")
        # Below the field's text, and with a layout of its own: it comes and goes.
        self.status = w.HTML(description=" ", layout=w.Layout(width=WIDE.width), style=STYLE)
        self.status.add_class("kwsbench-problem")
        self.command = w.HTML(description="command", layout=WIDE, style=STYLE)
        self.front = _dropdown("front end", network.FRONTS)
        self.channels = _slider(w.IntSlider, "channels (w)", "of stem and cells")
        self.head = _slider(w.IntSlider, "head (h)", "channels of the head")
        self.cells = _slider(w.IntSlider, "cells", "how many")
        self.rows: list[CellRow] = []
        self.row_box = w.VBox(layout=w.Layout(width="100%", max_height="236px", overflow="hidden auto"))
        bits = {"min": 1, "max": 8, "value": 8}
        self.weight_bits = _slider(w.IntSlider, "weights (bits)", "bits per weight", **bits)
        self.activation_bits = _slider(w.IntSlider, "activations (bits)", "bits per value of an activation", **bits)
        self.summary, self.table = _html_table(), _html_table()
        self.view = network.view(self.state)
        self.figure = LiveFigure(network.draw(self.view))
        self.tell("")
        self._show()
        self.on(self.chosen, self._choose)
        self.on(self.field, self._edited)
        for control in (self.front, self.channels, self.head, self.cells):
            self.on(control, self._pick)
        for control in (self.weight_bits, self.activation_bits):
            self.on(control, self.update)
        top = [w.HTML(MONOSPACE, layout=w.Layout(display="none")), self.chosen, self.field, self.status, self.command]
        controls = [self.front, self.channels, self.head, self.cells, self.row_box]
        controls += [self.weight_bits, self.activation_bits]
        self.widget = w.VBox([*top, _side_by_side(controls, self.figure), self.summary, self.table])

    @property
    def state(self) -> network.NetworkState:
        named = self.menu.get(self.chosen.value)
        name = self.chosen.value if named is not None and not named.notation else ""
        return network.NetworkState(self.field.value, name, self.weight_bits.value, self.activation_bits.value)

    @property
    def description(self) -> Description:
        """What the pickers say."""
        cells = tuple(row.cell for row in self.rows[: len(self.row_box.children)])
        said = Description(self.front.value, self.channels.value, cells, self.head.value)
        return network.resized(said, self.cells.value)

    def tell(self, message: str) -> None:
        self.status.value = network.error_html(message) if message else ""
        self.status.layout.display = None if message else "none"

    def update(self) -> None:
        try:
            self.view = network.view(self.state)
        except ValueError as problem:  # the last network that could be drawn stays
            self.tell(str(problem))
            return
        self.tell("")
        redraw(self.figure, network.draw(self.view))
        self._show()

    def _show(self) -> None:
        self.command.value = network.command_html(self.view.command)
        self.summary.value = html_table([self.view.totals()], basis=network.TOTALS_BASIS)
        self.table.value = html_table(self.view.rows, network.TITLES, network.BASIS)
        if not self.view.state.name:
            with self.quietly():
                self._take(parse(self.view.network.notation))

    def _take(self, description: Description) -> None:
        """Set the pickers to what a notation says."""
        self.front.options = network.offered(network.FRONTS, description.front)
        self.front.value = description.front
        for slider, value, (least, most) in (
            (self.channels, description.width, network.CHANNELS),
            (self.head, description.head, network.HEAD_CHANNELS),
            (self.cells, len(description.cells), network.CELLS),
        ):
            with slider.hold_trait_notifications():
                slider.min, slider.max, slider.value = min(least, value), max(most, value), value
        while len(self.rows) < len(description.cells):
            self.rows.append(CellRow(len(self.rows) + 1, self._pick, self))
        for row, cell in zip(self.rows, description.cells):
            row.take(cell)
        self.row_box.children = [row.widget for row in self.rows[: len(description.cells)]]

    def _choose(self) -> None:
        name = self.chosen.value
        notation = self.found.get(name) or (self.menu[name].notation if name in self.menu else "")
        if notation:
            with self.quietly():
                self.field.value = notation
        self.update()

    def _edited(self) -> None:
        with self.quietly():
            self.chosen.value = ""
        self.update()

    def _pick(self) -> None:
        notation = write(self.description)
        with self.quietly():
            self.field.value = notation
        self._edited()


class TrainingMonitor(_Explorer):
    """Starts, stops and resumes training in a process of its own, and follows it."""

    def __init__(self, root: str, data: str = "", keyword: str = "computer", profile: str = "smoke"):
        super().__init__()
        self.settings = {"root": root, "data": data, "keyword": keyword, "profile": profile}
        self.stage = _dropdown("train", list(monitor.STAGES), value="stage 2")
        self.method = _dropdown("method", list(QUANTIZERS), value="tanh")
        self.bits = _slider(w.IntSlider, "width (bits)", "bits per weight", min=1, max=8, value=5)
        self.train = _button("train / resume", "play", "goes on from the last checkpoint")
        self.stop = _button("stop", "stop", "finishes the step and writes a checkpoint")
        self.bar = w.FloatProgress(min=0, max=100, description="done (%)", layout=WIDE, style=STYLE)
        self.figure = LiveFigure(monitor.draw({}))
        self.following: asyncio.Task | None = None
        self.train.on_click(self.guarded(self._train))
        self.stop.on_click(self.guarded(self._stop))
        for control in (self.stage, self.method, self.bits):
            self.on(control, self.refresh)
        buttons = w.HBox([self.train, self.stop])
        controls = [self.stage, self.method, self.bits, buttons, self.bar, self.status]
        self.widget = _side_by_side(controls, self.figure)
        self.refresh()
        self._follow()

    @property
    def job(self) -> Job:
        system = monitor.system_of(self.stage.value, self.method.value, self.bits.value)
        return Job(system=system, **self.settings)

    def refresh(self) -> bool:
        """Show what the job last said; whether it runs."""
        job = self.job
        running, progress = background.is_running(job), background.read_progress(job)
        self.tell(monitor.told(progress, running))
        self.bar.value = progress.percent if progress else 0.0
        self.train.disabled, self.stop.disabled = running, not running
        title = f"Training: {job.system.label}, profile {job.profile}"
        apply(self.figure, monitor.content(progress.history if progress else {}, title))
        return running

    def _train(self) -> None:
        background.start(self.job)
        self.train.disabled = True
        self.tell("starting ...")
        self._follow(grace_polls=40)

    def _stop(self) -> None:
        if background.stop(self.job):
            self.tell("stopping after this step ...")
        self.stop.disabled = True

    def _follow(self, grace_polls: int = 0) -> None:
        """Refresh until the job ends; for a job just started, wait first until its process is there."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return  # no event loop: whoever made this calls refresh
        if self.following is not None:
            self.following.cancel()
        self.following = loop.create_task(self._poll(grace_polls))

    async def _poll(self, grace_polls: int) -> None:
        running = False
        while True:
            await asyncio.sleep(POLL_SECONDS)
            grace_polls -= 1
            if not background.is_running(self.job):
                if running or grace_polls < 0:
                    self.refresh()
                    return
                continue
            running = self.refresh()
