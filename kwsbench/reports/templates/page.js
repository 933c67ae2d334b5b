"use strict";
// Draws each figure of a page with Plotly, in the page's own colours, and again when the width or the reader's
// light or dark setting changes, and for print.
window.kwsbench = (() => {
  const NARROW_PX = 560;
  const PRINT_PX = 660; // between the margins of A4 and of Letter
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const figures = new Map(); // plot -> figure
  let printing = false;

  // A data block: a JSON string of base64 of deflated JSON.
  const unpack = async (block) => {
    const bytes = Uint8Array.from(atob(JSON.parse(block.textContent)), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
    return JSON.parse(await new Response(stream).text());
  };

  const HOUSE_INK = "#767676"; // reports.style draws with it where the paper is unknown

  // Ink drawn for white paper is unreadable on dark paper: there, dark greys become the page's ink too.
  const isDarkGrey = (text) => {
    if (/^black$/i.test(text)) return true;
    const short = /^#([0-9a-f])([0-9a-f])([0-9a-f])$/i.exec(text);
    const long = /^#([0-9a-f]{2})([0-9a-f]{2})([0-9a-f]{2})$/i.exec(text);
    const rgb = /^rgb\((\d+),\s*(\d+),\s*(\d+)\)$/i.exec(text);
    let parts = null;
    if (short) parts = short.slice(1).map((x) => parseInt(x + x, 16));
    else if (long) parts = long.slice(1).map((x) => parseInt(x, 16));
    else if (rgb) parts = rgb.slice(1).map(Number);
    return parts !== null && Math.max(...parts) < 0x66 && Math.max(...parts) - Math.min(...parts) < 0x20;
  };
  const inked = (value, key, ink) => {
    if (typeof value === "string") {
      const replaced = value === HOUSE_INK || (dark.matches && !printing && isDarkGrey(value));
      return /color$/i.test(key) && replaced ? ink : value;
    }
    if (Array.isArray(value)) return value.map((item) => inked(item, key, ink));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, inked(v, k, ink)]));
    }
    return value;
  };

  const styled = (figure, width) => {
    const ink = colour("--ink");
    const grid = colour("--grid");
    const { data, layout } = inked(figure, "", ink);
    layout.autosize = true;
    layout.paper_bgcolor = "rgba(0,0,0,0)";
    layout.plot_bgcolor = "rgba(0,0,0,0)";
    layout.font = { ...layout.font, color: ink, size: width < NARROW_PX ? 12 : 14 };
    layout.legend = { ...layout.legend, bgcolor: "rgba(0,0,0,0)" };
    layout.modebar = { bgcolor: "rgba(0,0,0,0)", color: colour("--quiet"), activecolor: ink };
    layout.height = layout.height || (width < NARROW_PX ? 360 : 420);
    for (const note of layout.annotations || []) note.arrowcolor = note.arrowcolor || ink;
    const axes = Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key));
    for (const key of new Set([...axes, "xaxis", "yaxis"])) {
      layout[key] = { ...layout[key], gridcolor: grid, linecolor: grid, zerolinecolor: grid, automargin: true };
    }
    // The title stands above the plot as text of the page.
    layout.margin = { r: 10, ...layout.margin, t: Math.min(28, layout.margin?.t ?? 28) };
    if (width < NARROW_PX) {
      const entries = data.filter((trace) => trace.showlegend !== false && trace.name).length;
      layout.margin = { ...layout.margin, l: 10, r: 10 };
      layout.legend = {
        ...layout.legend, orientation: "h", x: 0, xanchor: "left", y: 0, yref: "container", yanchor: "bottom",
      };
      if (entries > 1) layout.height += 22 * entries;
    }
    if (printing) {
      layout.width = PRINT_PX;
      layout.height = Math.round(0.8 * layout.height); // two to a page
    }
    return { data, layout };
  };

  const draw = async (plot) => {
    const figure = figures.get(plot);
    if (!figure || !plot.clientWidth) return; // nothing to draw, or on a page that is not shown
    const domains = Object.entries(figure.layout).filter(([key]) => /^xaxis\d*$/.test(key));
    plot.classList.toggle("wide", domains.some(([, axis]) => axis.domain && axis.domain[1] - axis.domain[0] < 0.6));
    const { data, layout } = styled(figure, printing ? PRINT_PX : plot.clientWidth);
    try {
      await Plotly.react(plot, data, layout, {
        // Plotly's own set of buttons can upload the figure; these cannot.
        modeBarButtons: [["toImage"], ["zoom2d", "pan2d", "resetScale2d"]],
        responsive: true, displaylogo: false, displayModeBar: "hover", plotlyServerURL: "", showSendToCloud: false,
      });
      plot.dataset.drawn = "true";
    } catch (error) {
      plot.textContent = `This figure could not be drawn: ${error}`;
      console.error(error);
    }
  };

  // Give a plot its figure ({data, layout}), now or anew.
  const plot = (element, figure) => {
    const known = figures.has(element);
    figures.set(element, figure);
    if (known) return draw(element);
    let narrow = null;
    new ResizeObserver(() => {
      const now = element.clientWidth ? element.clientWidth < NARROW_PX : null;
      if (printing || now === narrow) return;
      narrow = now;
      draw(element);
    }).observe(element);
    return undefined;
  };

  const drawAll = () => { for (const element of figures.keys()) draw(element); };
  dark.addEventListener("change", drawAll);

  // Paper is light and as wide as it is; what is folded away is opened, except code.
  const folded = "details:not(.code):not([open])";
  window.addEventListener("beforeprint", () => {
    printing = true;
    root.classList.add("printing");
    for (const part of document.querySelectorAll(folded)) {
      part.open = true;
      part.dataset.opened = "true";
    }
    drawAll();
  });
  window.addEventListener("afterprint", () => {
    printing = false;
    root.classList.remove("printing");
    for (const part of document.querySelectorAll("details[data-opened]")) {
      part.open = false;
      delete part.dataset.opened;
    }
    drawAll();
  });

  const start = async () => {
    for (const block of document.querySelectorAll("script.figure-data")) {
      const page = block.closest("section.page") || document;
      const data = await unpack(block);
      for (const element of page.querySelectorAll(".plot[data-figure]")) plot(element, data[element.dataset.figure]);
    }
  };
  start();

  return { plot, unpack };
})();
