"""A Plotly FigureWidget that comes up on slow machines too.

Plotly's own widget has two weaknesses, both of which leave a plot empty for good:

- Every figure carries Plotly (5 MB of JavaScript) in its ``_esm`` and compiles it anew; anywidget gives each model 2 s
  to get ready. Here Plotly travels and is compiled once per page, by a widget of its own; a figure's ``_esm`` is a few
  lines that are ready at once and draw when Plotly is there.
- A figure is announced to the page empty, its data follows; a page that draws in between shows nothing. Here it is
  announced with its data.
"""

from __future__ import annotations

from functools import cache

import anywidget
import plotly.graph_objects as go
from plotly.basewidget import BaseFigureWidget
from traitlets import Unicode

SHARED = """
const shared = (globalThis.kwsbenchPlotly ??= (() => {
  let resolve;
  const promise = new Promise((r) => { resolve = r; });
  return { promise, resolve };
})());
"""
BUNDLE_ESM = (
    SHARED
    + """
export default {
  initialize({ model }) {
    const url = URL.createObjectURL(new Blob([model.get("_bundle")], { type: "text/javascript" }));
    import(url).then((module) => shared.resolve(module.default)).finally(() => URL.revokeObjectURL(url));
  },
};
"""
)
FIGURE_ESM = (
    SHARED
    + """
export default async () => {
  const started = new WeakMap();
  // Plotly's model listens for changes once started; what changed before is in the model's state by then.
  const start = (context) => {
    if (!started.has(context.model)) started.set(context.model, shared.promise.then(async (plotly) => {
      const widget = typeof plotly === "function" ? await plotly() : plotly;
      await widget.initialize?.(context);
      return widget;
    }));
    return started.get(context.model);
  };
  let model;
  return {
    initialize(context) { model = context.model; start(context); },
    async render(context) {
      const widget = await (started.get(model) ?? start(context));
      return widget.render(context);
    },
  };
};
"""
)


class PlotlyBundle(anywidget.AnyWidget):
    """Plotly's JavaScript, handed to the page once."""

    _esm = BUNDLE_ESM
    _bundle = Unicode().tag(sync=True)


class LiveFigure(go.FigureWidget):
    """A figure as a widget; see the module's docstring. No bar of buttons: a double click resets a zoom."""

    _esm = FIGURE_ESM
    _complete = False

    def __init__(self, figure: go.Figure):
        _bundle()
        super().__init__(figure)
        self._config = {"displayModeBar": False, "responsive": True}
        self._complete = True
        self.open()

    def open(self) -> None:
        """Announced once its data is in it."""
        if self._complete:
            super().open()


@cache
def _bundle() -> PlotlyBundle:
    """One per kernel; kept, so that a reloaded page gets it again."""
    return PlotlyBundle(_bundle=str(BaseFigureWidget._esm))
