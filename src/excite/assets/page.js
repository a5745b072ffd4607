"use strict";
(() => {
  const root = document.documentElement;
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const hidden = new Set();
  const touch = matchMedia("(pointer: coarse)").matches;

  // "@1/0.2" under a key that ends in "color" is the theme's first colour at 20 % opacity.
  function color(name) {
    const [, key, alpha] = /^@([a-z]+|\d+)(?:\/([\d.]+))?$/.exec(name) || [];
    if (!key) return name;
    const hex = getComputedStyle(root).getPropertyValue("--" + key).trim();
    const [r, g, b] = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
    return `rgba(${r},${g},${b},${alpha || 1})`;
  }

  function themed(value, key) {
    if (Array.isArray(value)) return value.map((v) => themed(v, key));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, themed(v, k)]));
    }
    return typeof value === "string" && /color$/.test(key || "") ? color(value) : value;
  }

  const isObject = (v) => v && typeof v === "object" && !Array.isArray(v);

  function merged(base, over) {
    const out = { ...base };
    for (const [k, v] of Object.entries(over)) out[k] = isObject(v) && isObject(base[k]) ? merged(base[k], v) : v;
    return out;
  }

  const axis = {
    gridcolor: "@grid", linecolor: "@line", zeroline: false, automargin: true, ticks: "",
    title: { standoff: 10, font: { color: "@muted", size: 13 } }, tickfont: { color: "@muted", size: 12 },
  };

  function layout(given) {
    const font = { family: getComputedStyle(document.body).fontFamily, size: 13, color: "@ink" };
    const base = {
      font, autosize: true, showlegend: false, margin: { l: 8, r: 12, t: 8, b: 8 },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest",
      hoverlabel: { bgcolor: "@raised", bordercolor: "@line", font: { ...font, size: 12 }, align: "left", namelength: -1 },
      dragmode: touch ? false : "zoom", // a finger that scrolls the page must not zoom a figure
      modebar: { bgcolor: "rgba(0,0,0,0)", color: "@muted", activecolor: "@ink" },
    };
    const out = merged(base, given);
    for (const key of new Set(["xaxis", "yaxis", ...Object.keys(given).filter((k) => /^[xy]axis\d*$/.test(k))])) {
      out[key] = merged(axis, given[key] || {});
    }
    return themed(out);
  }

  // The buttons are named one by one: plotly's own set has one that sends the figure to a server.
  const config = {
    responsive: true, displaylogo: false, displayModeBar: touch ? false : "hover", plotlyServerURL: "",
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]], toImageButtonOptions: { format: "svg" },
  };

  function draw(plot) {
    const { data, layout: given } = figures[plot.dataset.figure];
    const traces = data.map((t) => ({ ...themed(t), visible: hidden.has(t.legendgroup) ? false : t.visible ?? true }));
    // Shapes and annotations of a series carry its key as their name and go with it.
    const kept = (items) => (items || []).filter((i) => !hidden.has(i.name));
    const shown = { ...given, shapes: kept(given.shapes), annotations: kept(given.annotations) };
    return Plotly.react(plot, traces, layout(shown), config);
  }

  const plots = [...document.querySelectorAll(".plot")];
  const drawAll = () => Promise.all(plots.filter((p) => p.offsetWidth).map(draw));

  for (const details of document.querySelectorAll("details")) {
    details.addEventListener("toggle", () => details.open && details.querySelectorAll(".plot").forEach(draw));
  }
  for (const button of document.querySelectorAll(".legend button")) {
    button.addEventListener("click", () => {
      const key = button.dataset.series;
      if (!hidden.delete(key)) hidden.add(key);
      for (const twin of document.querySelectorAll(".legend button")) {
        twin.setAttribute("aria-pressed", String(!hidden.has(twin.dataset.series)));
      }
      drawAll();
    });
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  addEventListener("beforeprint", () => { root.dataset.print = ""; drawAll(); });
  addEventListener("afterprint", () => { delete root.dataset.print; drawAll(); });

  function sort(head) {
    const table = head.closest("table");
    const column = [...head.parentNode.children].indexOf(head);
    const rising = head.getAttribute("aria-sort") !== "ascending";
    for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", rising ? "ascending" : "descending");
    const key = (row) => row.children[column].dataset.sort;
    const number = (text) => (text === "" ? NaN : Number(text));
    const order = (a, b) => {
      const [x, y] = [key(a), key(b)];
      const [m, n] = [number(x), number(y)];
      const empty = (x === "") - (y === "");
      if (empty) return empty; // what is missing stays last either way
      const way = Number.isNaN(m) || Number.isNaN(n) ? x.localeCompare(y) : m - n;
      return rising ? way : -way;
    };
    const body = table.tBodies[0];
    body.append(...[...body.rows].sort(order));
  }
  for (const head of document.querySelectorAll("thead th")) {
    head.querySelector("button").addEventListener("click", () => sort(head));
  }

  drawAll().then(() => { root.dataset.ready = ""; });
})();
