"use strict";
// The live parts of an index: sorting, filtering, DET overlays, the Pareto front, two runs side by side. All from the
// page's own data; everything shown is set as text, never as markup.
(async () => {
  const block = document.getElementById("index-data");
  if (!block) return;
  const { runs } = await kwsbench.unpack(block);
  const MOST_CURVES = 12;
  const MOST_LABELS = 14;
  const TICKS = [0, 1, 2, 3, 4, 5].flatMap((decade) => [1, 2, 5].map((digit) => digit * 10 ** decade)); // kB
  // The palette, dashes and markers of reports.style.
  const PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A8A8A"];
  const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
  const MARKERS = ["circle", "square", "diamond", "triangle-up", "x", "star", "triangle-down"];
  const BELOW = { orientation: "h", x: 0, xanchor: "left", y: -0.2, yanchor: "top" }; // names of runs are long
  const KINDS = [...new Set(runs.flatMap((run) => run.systems.map((s) => s.kind)))];

  const by = (id) => document.getElementById(id);
  const make = (tag, text, attributes = {}) => {
    const element = document.createElement(tag);
    if (text !== undefined && text !== null) element.textContent = text;
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;"); // Plotly reads markup in text
  const words = (value) => (Array.isArray(value) ? value.join(",") : String(value));
  const number = (value) => {
    if (value === null || value === undefined) return "–";
    if (typeof value !== "number") return words(value);
    const size = Math.abs(value);
    return size >= 999.5 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(3)));
  };

  // ------------------------------------------------------------------------------------------- sorting

  const sortBy = (table, column) => {
    const heads = [...table.tHead.rows[0].cells];
    const down = heads[column].getAttribute("aria-sort") === "ascending";
    heads.forEach((head, i) => (i === column
      ? head.setAttribute("aria-sort", down ? "descending" : "ascending")
      : head.removeAttribute("aria-sort")));
    const numeric = heads[column].classList.contains("number");
    const key = (row) => {
      const cell = row.cells[column];
      if (!numeric) return cell.textContent.trim();
      return cell.dataset.value === undefined || cell.dataset.value === "" ? null : Number(cell.dataset.value);
    };
    const order = (x, y) => {
      if (x === null || y === null) return (x === null) - (y === null); // what is missing stands last, either way
      const difference = numeric ? x - y : x.localeCompare(y, "en", { numeric: true });
      return down ? -difference : difference;
    };
    const body = table.tBodies[0];
    body.append(...[...body.rows].sort((a, b) => order(key(a), key(b))));
  };
  for (const table of document.querySelectorAll("table.runs")) {
    [...table.tHead.rows[0].cells].forEach((head, i) => {
      head.querySelector("button").addEventListener("click", () => sortBy(table, i));
    });
  }

  // ----------------------------------------------------------------------------------------- filtering

  const rows = new Map([...document.querySelectorAll("[data-run]")].map((row) => [row.dataset.run, row]));
  const text = new Map(runs.map((run) => {
    const named = Object.entries({ ...run.parameters, ...run.figures }).map(([k, v]) => `${k}=${words(v)}`);
    const row = rows.get(run.name);
    return [run.name, [run.name, run.notebook, run.state, row ? row.textContent : "", ...named].join(" ").toLowerCase()];
  }));
  let shown = runs;
  const matches = (run, wanted) => {
    const [name, value] = wanted.split("=");
    if (value === undefined) return text.get(run.name).includes(wanted);
    const found = Object.entries({ ...run.parameters, ...run.figures }).find(([k]) => k.toLowerCase() === name);
    if (!found) return false;
    const told = words(found[1]).toLowerCase();
    return value === "" || told === value || (Array.isArray(found[1]) && found[1].some((v) => String(v) === value));
  };
  const filter = () => {
    const wanted = by("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    shown = runs.filter((run) => wanted.every((word) => matches(run, word)));
    const kept = new Set(shown.map((run) => run.name));
    for (const [name, row] of rows) row.hidden = !kept.has(name);
    by("filter-count").textContent = wanted.length ? `${shown.length} of ${runs.length} runs` : "";
    drawPareto();
    choose();
  };

  // ----------------------------------------------------------------------------------------- overlays

  const full = (run, system) => `${system.system}; ${run.label}`;
  const checked = (id) => new Set([...by(id).querySelectorAll("input:checked")].map((box) => box.value));
  const box = (id, value, label, on) => {
    const line = make("label");
    const input = make("input", null, { type: "checkbox", value });
    input.checked = on;
    input.addEventListener("change", drawOverlay);
    line.append(input, ` ${label}`);
    by(id).append(line);
  };
  const axis = (title, rest) => ({ title: { text: title, standoff: 8 }, zeroline: false, ticks: "outside", ...rest });
  const FRR = "false rejects (FRR, %)";

  const choose = () => {
    if (!by("overlay")) return;
    const able = shown.filter((run) => run.systems.length);
    const before = checked("overlay-runs");
    const systems = [...new Set(able.flatMap((run) => run.systems.map((s) => s.system)))];
    const old = checked("overlay-systems");
    by("overlay-runs").replaceChildren();
    by("overlay-systems").replaceChildren();
    const keep = able.some((run) => before.has(run.name));
    able.forEach((run, i) => box("overlay-runs", run.name, run.label, keep ? before.has(run.name) : i < 3));
    const kept = systems.some((system) => old.has(system));
    // At first the ends of the path: float, and everything quantized.
    const ends = new Set(able.flatMap((run) => run.systems.filter((s) => /^(float|stage_two)$/.test(s.kind)).map((s) => s.system)));
    const first = (ends.size ? systems.filter((system) => ends.has(system)) : systems).slice(0, 6);
    for (const system of systems) box("overlay-systems", system, system, kept ? old.has(system) : first.includes(system));
    drawOverlay();
  };
  const drawOverlay = () => {
    if (!by("overlay")) return;
    const inRuns = checked("overlay-runs");
    const inSystems = checked("overlay-systems");
    const x = by("overlay-axis").value;
    // The same system of the same corpus, shown by several notebooks, is one curve.
    const distinct = new Map();
    for (const run of shown.filter((one) => inRuns.has(one.name))) {
      for (const system of run.systems.filter((one) => inSystems.has(one.system))) {
        const key = JSON.stringify([system.system, system.seed, system.curve]);
        if (!distinct.has(key)) distinct.set(key, { run, system });
      }
    }
    const chosen = [...distinct.values()];
    const drawn = chosen.slice(0, MOST_CURVES);
    const labels = drawn.map(({ system }) => system.system);
    const alone = (system) => labels.filter((label) => label === system.system).length === 1;
    const several = labels.length > new Set(labels).size;
    const named = (run, system) => (alone(system) && !several ? system.system : full(run, system));
    const data = drawn.map(({ run, system }, i) => ({
      type: "scatter", mode: "lines", name: plain(named(run, system)),
      x: system.curve[x], y: system.curve.frr,
      line: { color: PALETTE[i % PALETTE.length], dash: DASHES[i % DASHES.length], width: 2.5 },
      hovertemplate: `FRR %{y:.1f}%, ${x === "fa" ? "%{x:.3g} false accepts per hour" : "FDR %{x:.1f}%"}`,
    }));
    const layout = {
      xaxis: x === "fa" ? axis("false accepts per hour of negative audio", { type: "log", dtick: 1 })
        : axis("false discovery rate (FDR, % of accepted clips)", { rangemode: "tozero" }),
      yaxis: axis(FRR, { range: [0, 30] }), showlegend: true, legend: BELOW, margin: { l: 10, r: 10, b: 10 },
      height: 420 + 12 * drawn.length,
    };
    const best = drawn.map((entry) => ({ ...entry, frr: entry.system.point.frr, fdr: entry.system.point.fdr }))
      .filter((entry) => typeof entry.fdr === "number").sort((a, b) => a.fdr - b.fdr)[0];
    const cut = chosen.length > drawn.length ? ` The first ${drawn.length} of ${chosen.length} curves are drawn.` : "";
    const told = best ? `Lower left is better. At its own threshold, chosen on validation, ${named(best.run, best.system)} `
      + `has the least false discoveries: FDR ${number(100 * best.fdr)}% at FRR ${number(100 * best.frr)}%.` : "Nothing chosen.";
    by("overlay-told").textContent = told + cut
      + (x === "fa" ? " No false accept at all is drawn at half of one." : "");
    by("overlay-plot").setAttribute("aria-label",
      `DET curves of ${drawn.map(({ run, system }) => named(run, system)).join(", ") || "no system"}.`);
    kwsbench.plot(by("overlay-plot"), { data, layout });
  };

  // ------------------------------------------------------------------------------------------- Pareto

  // Points that no other point beats in one respect and equals or beats in the other, by size.
  const front = (points) => {
    let best = Infinity;
    return [...points].sort((a, b) => a.kilobytes - b.kilobytes || a.fdr - b.fdr)
      .filter((point) => point.fdr < best && ((best = point.fdr), true));
  };
  const drawPareto = () => {
    if (!by("pareto")) return;
    const points = new Map();
    for (const run of shown) {
      for (const system of run.systems) {
        if (typeof system.bytes !== "number" || typeof system.point.fdr !== "number") continue;
        const point = {
          run, system, kilobytes: system.bytes / 1000, fdr: 100 * system.point.fdr, frr: 100 * system.point.frr,
        };
        // The same system of the same corpus, shown by several notebooks, is one point.
        points.set([system.system, system.seed, point.kilobytes, point.fdr, point.frr].join("|"), point);
      }
    }
    const all = [...points.values()];
    by("pareto").hidden = !all.length;
    if (!all.length) return;
    const ahead = front(all);
    const unique = new Set(all.map((point) => point.system.system)).size === all.length;
    const named = (run, system) => (unique ? system.system : full(run, system));
    const label = (point) => plain(named(point.run, point.system));
    // Systems in float are as large as each other: their labels would lie over each other, so one is named.
    const integer = (point) => point.system.layers.length > 0;
    const float = all.find((point) => point.system.kind === "float");
    const short = (point) => (point === float ? "float" : plain(point.system.system)); // the run is told on hover
    // Neighbours on the front take turns above and below it.
    const side = (point) => (point === float ? "top left"
      : ahead.includes(point) && ahead.indexOf(point) % 2 ? "bottom left" : "top right");
    // The front first; a label that would lie over one already there is left to the hover text.
    const wide = Math.log10(Math.max(...all.map((p) => p.kilobytes)) / Math.min(...all.map((p) => p.kilobytes))) || 1;
    const high = Math.max(...all.map((point) => point.fdr)) || 1;
    const close = (a, b) => side(a) === side(b) && Math.abs(a.fdr - b.fdr) < 0.06 * high
      && Math.abs(Math.log10(a.kilobytes / b.kilobytes)) < 0.25 * wide;
    const wanting = [...ahead, ...(float ? [float] : []), ...(all.length <= MOST_LABELS ? all.filter(integer) : [])];
    const labelled = wanting.reduce((kept, p) => (kept.some((other) => close(other, p)) ? kept : [...kept, p]), []);
    const worded = (point) => labelled.includes(point);
    const data = KINDS.map((kind, i) => {
      const of = all.filter((point) => point.system.kind === kind);
      return {
        type: "scatter", mode: "markers+text", name: plain(kind.replace(/_/g, " ")), cliponaxis: false,
        x: of.map((point) => point.kilobytes), y: of.map((point) => point.fdr),
        text: of.map((point) => (worded(point) ? short(point) : "")),
        textposition: of.map(side), textfont: { size: 11 },
        hovertext: of.map((point) => `${label(point)}<br>${number(point.kilobytes)} kB (${point.system.basis || "counted"}), `
          + `FDR ${number(point.fdr)}%, FRR ${number(point.frr)}%`),
        hoverinfo: "text",
        marker: { color: PALETTE[i % PALETTE.length], symbol: MARKERS[i % MARKERS.length], size: 10 },
      };
    }).filter((trace) => trace.x.length);
    data.push({
      type: "scatter", mode: "lines", name: "front", hoverinfo: "skip",
      x: ahead.map((point) => point.kilobytes), y: ahead.map((point) => point.fdr),
      line: { color: "#767676", width: 1.5, dash: "dot", shape: "hv" },
    });
    const layout = {
      xaxis: axis("memory of one stream (kB)", { type: "log", tickvals: TICKS, ticktext: TICKS.map(number) }),
      yaxis: axis("false discovery rate (FDR, %)", { rangemode: "tozero" }), showlegend: true, legend: BELOW,
      margin: { l: 10, r: 10, b: 10 },
    };
    const [least, most] = [ahead[0], ahead[ahead.length - 1]];
    const told = `${ahead.length} of ${all.length} systems lie on the front, from ${named(least.run, least.system)} `
      + `(${number(least.kilobytes)} kB, FDR ${number(least.fdr)}%) to ${named(most.run, most.system)} `
      + `(${number(most.kilobytes)} kB, FDR ${number(most.fdr)}%).`;
    by("pareto-told").textContent = `${told} Each at its own threshold, chosen on validation: their FRR differ.`;
    by("pareto-plot").setAttribute("aria-label", `FDR over bytes. ${told}`);
    by("pareto-plot").dataset.front = ahead.map((point) => point.system.system).join("|");
    kwsbench.plot(by("pareto-plot"), { data, layout });
  };

  // --------------------------------------------------------------------------------------- difference

  const same = (x, y) => JSON.stringify(x) === JSON.stringify(y);
  const names = (x, y) => [...new Set([...Object.keys(x), ...Object.keys(y)])];
  const table = (head, body, label) => {
    const scroll = make("div", null, { class: "scroll", tabindex: "0", role: "region", "aria-label": label });
    const made = make("table");
    const titles = made.createTHead().insertRow();
    for (const title of head) titles.append(make("th", title, { scope: "col" }));
    const rest = made.createTBody();
    for (const cells of body) {
      const row = rest.insertRow();
      cells.forEach((cell, i) => row.append(make(i ? "td" : "th", cell, i ? {} : { scope: "row" })));
    }
    scroll.append(made);
    return scroll;
  };
  // Where two programs part: as reports.comparison.first_divergence.
  const divergence = (x, y) => {
    if (!x.length || !y.length) return "";
    for (let i = 0; i < Math.min(x.length, y.length); i += 1) {
      if (x[i][0] !== y[i][0]) return `other layers: ${x[i][0]} against ${y[i][0]}`;
      if (x[i][1] !== y[i][1]) {
        return x[i][0] === "features" ? "input data differ (features)" : `first divergent: ${x[i][0]}`;
      }
    }
    return x.length === y.length ? `no layer differs (${x.length} digests)` : "one program goes on, equal so far";
  };
  // As reports.comparison pairs them: same label and seed, same label, alone in its kind.
  const paired = (x, y) => {
    const left = [...x];
    const right = [...y];
    const pairs = [];
    for (const keys of [["system", "keyword", "seed"], ["system", "keyword"], ["kind", "keyword"]]) {
      for (const system of [...left]) {
        const like = (other) => keys.every((key) => other[key] === system[key]);
        const found = right.filter(like);
        const alone = left.filter(like).length === 1 && found.length === 1;
        if (found.length && (alone || keys[0] === "system")) {
          pairs.push([system, found[0]]);
          left.splice(left.indexOf(system), 1);
          right.splice(right.indexOf(found[0]), 1);
        }
      }
    }
    return [...pairs, ...left.map((s) => [s, null]), ...right.map((s) => [null, s])];
  };
  const difference = () => {
    const [a, b] = ["run-a", "run-b"].map((id) => runs.find((run) => run.name === by(id).value));
    const told = by("difference-told");
    told.replaceChildren();
    for (const [title, x, y] of [["Parameters", a.parameters, b.parameters], ["What they stand on", a.identity, b.identity]]) {
      const differing = names(x, y).filter((name) => !same(x[name], y[name]));
      told.append(make("h3", title), make("p", `${differing.length} of ${names(x, y).length} differ.`));
      const cell = (value) => (value === undefined || value === null ? "(none)" : words(value));
      if (differing.length) {
        told.append(table(["", "first", "second"], differing.map((name) => [name, cell(x[name]), cell(y[name])]), title));
      }
    }
    const change = (x, y) => (typeof x === "number" && typeof y === "number"
      ? [number(y - x), x ? number(y / x) : "–"] : ["–", "–"]);
    const figures = names(a.figures, b.figures);
    if (figures.length) {
      told.append(make("h3", "Key figures"), table(["", "first", "second", "second - first", "second / first"],
        figures.map((name) => [name.replace(/_/g, " "), number(a.figures[name]), number(b.figures[name]),
          ...change(a.figures[name], b.figures[name])]), "Key figures"));
    }
    const pairs = paired(a.systems, b.systems);
    if (pairs.length) {
      const percent = (share) => (typeof share === "number" ? 100 * share : null);
      const values = (s) => (s ? [percent(s.point.frr), percent(s.point.fdr), s.point.fa_per_hour, s.bytes] : []);
      const cells = (x, y) => [0, 1, 2, 3].map((i) => `${number(values(x)[i])} | ${number(values(y)[i])}`);
      told.append(make("h3", "Systems"), table(
        ["first | second", "FRR (%)", "FDR (%)", "FA/h", "bytes", "programs"],
        pairs.map(([x, y]) => [
          x && y && x.system === y.system ? x.system : `${x ? x.system : "(none)"} | ${y ? y.system : "(none)"}`,
          ...cells(x, y), x && y ? divergence(x.layers, y.layers) || "float" : "–",
        ]), "Systems"));
    }
  };

  // -------------------------------------------------------------------------------------------- start

  for (const part of document.querySelectorAll(".live")) part.hidden = false;
  if (by("filter")) by("filter").addEventListener("input", filter);
  if (by("overlay")) by("overlay-axis").addEventListener("change", drawOverlay);
  if (by("difference")) {
    for (const id of ["run-a", "run-b"]) {
      for (const run of runs) by(id).append(make("option", run.label, { value: run.name }));
      by(id).addEventListener("change", difference);
    }
    // Two runs of one notebook if there are, else two that have systems, else the first two.
    const able = runs.filter((run) => run.systems.length);
    const twins = runs.filter((run) => runs.some((other) => other !== run && other.notebook === run.notebook));
    const [one, other] = [twins, able, runs].find((list) => list.length > 1);
    by("run-a").value = one.name;
    by("run-b").value = (twins.find((run) => run !== one && run.notebook === one.notebook) || other).name;
    difference();
  }
  drawPareto();
  choose();
  document.documentElement.dataset.ready = "true";
})();
