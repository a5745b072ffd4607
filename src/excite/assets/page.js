"use strict";
(() => {
  const root = document.documentElement;
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const { makers = {}, slots = {}, options = {} } = globalThis.live || {}; // the page's own script has run before
  const chosen = {};
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const hidden = new Set(all('.legend [aria-pressed="false"]').map((b) => b.dataset.series));
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
    return typeof value === "string" && /color(scale)?$/.test(key || "") ? color(value) : value;
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
    typesetMath: false, // a name may hold two dollar signs
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]], toImageButtonOptions: { format: "svg" },
  };

  const made = (index) => (figures[index].maker ? makers[figures[index].maker](chosen) : figures[index]);

  function draw(plot) {
    const { data, layout: given, height } = made(plot.dataset.figure);
    if (height) plot.style.height = `${height}px`;
    const traces = data.map((t) => ({ ...themed(t), visible: hidden.has(t.legendgroup) ? false : t.visible ?? true }));
    // Shapes and annotations of a series carry its key as their name and go with it.
    const kept = (items) => (items || []).filter((i) => !hidden.has(i.name));
    const shown = { ...given, shapes: kept(given.shapes), annotations: kept(given.annotations) };
    return Plotly.react(plot, traces, layout(shown), config);
  }

  const drawn = (plots) => Promise.all(plots.filter((p) => p.offsetWidth).map(draw));
  const drawAll = () => drawn(all(".plot"));

  for (const details of all("details")) {
    details.addEventListener("toggle", () => {
      if (!details.open) return;
      all(".plot", details).forEach(draw);
      if (details.dataset.numbers) writeNumbers(details);
    });
  }
  for (const button of all(".legend button")) {
    button.addEventListener("click", () => {
      const key = button.dataset.series;
      if (!hidden.delete(key)) hidden.add(key);
      for (const twin of all(".legend button")) {
        twin.setAttribute("aria-pressed", String(!hidden.has(twin.dataset.series)));
      }
      drawAll();
    });
  }
  for (const query of ["(prefers-color-scheme: dark)", "(max-width: 600px)"]) {
    matchMedia(query).addEventListener("change", drawAll);
  }
  addEventListener("beforeprint", () => { root.dataset.print = ""; drawAll(); });
  addEventListener("afterprint", () => { delete root.dataset.print; drawAll(); });

  // --- what a reader chooses ---

  function element(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [k, v] of Object.entries(attributes)) node.setAttribute(k, v);
    node.append(...children);
    return node;
  }

  // A live figure's numbers as a table: columns are names, rows are numbers and texts.
  function writeNumbers(details) {
    const { columns, rows } = made(details.dataset.numbers).table;
    const heads = columns.map((c) => {
      const head = element("th", { scope: "col" }, element("button", { type: "button" }, element("span", { title: c }, c)));
      head.firstChild.addEventListener("click", () => sort(head));
      return head;
    });
    const cell = (value, i) => {
      const shown = typeof value === "number" && !Number.isInteger(value) ? value.toPrecision(4) : String(value ?? "");
      return element(i ? "td" : "th", { "data-sort": value ?? "", ...(i ? {} : { scope: "row" }) }, shown);
    };
    const body = element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map(cell))));
    const box = element("div", { class: "box", tabindex: 0, role: "region", "aria-label": "the numbers drawn" });
    box.append(element("table", {}, element("thead", {}, element("tr", {}, ...heads)), body));
    details.querySelector("div").replaceChildren(box);
  }

  function offer(select) {
    const name = select.dataset.choice;
    if (select.dataset.filled === undefined) return;
    const offered = options[name](chosen);
    select.replaceChildren(...offered.map(([value, label]) => element("option", { value }, label)));
    // What was chosen stays chosen where it is still there.
    if (!offered.some(([value]) => value === chosen[name])) chosen[name] = offered.length ? offered[0][0] : "";
  }

  function showChosen() {
    for (const select of all("select[data-choice]")) {
      offer(select);
      select.value = chosen[select.dataset.choice];
    }
    for (const slot of all("[data-slot]")) slots[slot.dataset.slot](chosen, slot, element);
    for (const button of all("button[data-choice]")) {
      button.setAttribute("aria-pressed", String(chosen[button.dataset.choice] === button.value));
    }
    all("details[data-numbers][open]").forEach(writeNumbers);
  }

  function choose(name, value) {
    chosen[name] = value;
    showChosen();
    return drawn(all(".plot").filter((p) => figures[p.dataset.figure].maker));
  }

  for (const select of all("select[data-choice]")) {
    chosen[select.dataset.choice] ??= select.value;
    select.addEventListener("change", () => choose(select.dataset.choice, select.value));
  }
  // Buttons in slots come and go.
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-choice]");
    if (button) choose(button.dataset.choice, button.value);
  });

  // --- tables ---

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
  for (const head of all("thead th")) {
    head.querySelector("button").addEventListener("click", () => sort(head));
  }

  showChosen();
  drawAll().then(() => { root.dataset.ready = ""; });
})();
