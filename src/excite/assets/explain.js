"use strict";
// What `excite explain` draws by the choices gate, order, scale, band, colour, channel, of and image. See Live in excite/page.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const all = data.classes.length; // the row of all images, after those of the classes
  const gateOf = (chosen) => data.gates[chosen.gate];

  // Plotly reads a little HTML in its texts, and %{...} in those that it shows under the mouse.
  const text = (s) => s.replace(/[&<>%]/g, (c) => `&#${c.charCodeAt(0)};`);
  const short = (s, n = 22) => (s.length > n ? `${s.slice(0, n - 1)}…` : s);
  // Whole under the mouse, in lines that fit a phone.
  const whole = (s) => (s.match(/.{1,40}/gsu) ?? []).map(text).join("<br>");
  const narrow = matchMedia("(max-width: 600px)");

  // Rows of numbers, packed as 16 bits each between two ends; unpacked once.
  const unpacked = new Map();
  function rows(packed, channels) {
    if (!unpacked.has(packed)) {
      const bytes = Uint8Array.from(atob(packed.bits), (c) => c.charCodeAt(0));
      const view = new DataView(bytes.buffer);
      const value = (i) => packed.low + ((packed.high - packed.low) * view.getUint16(2 * i, true)) / 65535;
      const count = bytes.length / 2 / channels;
      const row = (r) => Array.from({ length: channels }, (_, c) => value(r * channels + c));
      unpacked.set(packed, Array.from({ length: count }, (_, r) => row(r)));
    }
    return unpacked.get(packed);
  }

  const meansOf = (gate) => rows(gate.mean, gate.channels);
  const sdsOf = (gate) => rows(gate.sd, gate.channels);

  const orders = {
    mean: "channels, the most open first",
    class: "channels, by the class that opens them most",
    number: "channel",
  };

  function ordered(gate, order) {
    const means = meansOf(gate);
    const channels = means[all].map((_, c) => c);
    const best = (c) => {
      let top = 0;
      for (let k = 1; k < all; k++) if (means[k][c] > means[top][c]) top = k;
      return top;
    };
    if (order === "mean") channels.sort((a, b) => means[all][b] - means[all][a]);
    if (order === "class") {
      const tops = channels.map(best);
      const above = channels.map((c) => means[tops[c]][c] - means[all][c]);
      channels.sort((a, b) => tops[a] - tops[b] || above[b] - above[a]);
    }
    return channels;
  }

  function scaled(gate, scale, axis) {
    return scale === "whole" ? { ...axis, range: gate.range } : axis;
  }

  const series = [...data.classes.map((c, k) => ({ ...c, row: k })), { ...data.all, row: all }];

  function curves(chosen) {
    const gate = gateOf(chosen);
    const channels = ordered(gate, chosen.order);
    const [means, sds] = [meansOf(gate), sdsOf(gate)];
    const x = channels.map((_, i) => i);
    const traces = [];
    for (const s of series) {
      const mean = channels.map((c) => means[s.row][c]);
      if (chosen.band === "shown") {
        const sd = channels.map((c) => sds[s.row][c]);
        const [high, low] = [mean.map((m, i) => m + sd[i]), mean.map((m, i) => m - sd[i])];
        traces.push({
          x: [...x, ...x.slice().reverse()], y: [...high, ...low.reverse()], mode: "lines", line: { width: 0 },
          fill: "toself", fillcolor: `${s.color}/0.13`, legendgroup: s.key, hoverinfo: "skip",
        });
      }
    }
    for (const s of series) {
      traces.push({
        x, y: channels.map((c) => means[s.row][c]), customdata: channels, mode: channels.length > 80 ? "lines" : "lines+markers",
        legendgroup: s.key, name: text(short(s.name)), line: { color: s.color, dash: s.dash, width: s.row === all ? 2.5 : 1.6 },
        marker: { color: s.color, symbol: s.symbol, size: 5 },
        hovertemplate: `${whole(s.name)}<br>channel %{customdata}: %{y:.3f}<extra></extra>`,
      });
    }
    return {
      data: traces,
      layout: {
        xaxis: { title: { text: orders[chosen.order] }, showgrid: false, showticklabels: chosen.order === "number" },
        yaxis: scaled(gate, chosen.scale, { title: { text: "mean s" } }),
      },
      table: {
        columns: ["channel", ...series.flatMap((s) => [s.name, "deviation"])],
        rows: channels.map((c) => [c, ...series.flatMap((s) => [means[s.row][c], sds[s.row][c]])]),
      },
    };
  }

  function heat(chosen) {
    const gate = gateOf(chosen);
    const channels = ordered(gate, chosen.order);
    const means = meansOf(gate);
    const against = chosen.colour === "against";
    // Upwards as plotly counts; the first class is to be on top.
    const shown = data.classes.map((c, k) => ({ name: c.name, row: k })).reverse();
    const z = shown.map(({ row }) => channels.map((c) => means[row][c] - (against ? means[all][c] : 0)));
    // A hundredth is nothing to be seen: what differs by less stays pale.
    const reach = Math.max(0.01, ...z.map((row) => row.reduce((m, v) => Math.max(m, Math.abs(v)), 0)));
    const colours = against
      ? { colorscale: [[0, "@2"], [0.5, "@paper"], [1, "@1"]], zmin: -reach, zmax: reach }
      : { colorscale: "Cividis", ...(chosen.scale === "whole" ? { zmin: gate.range[0], zmax: gate.range[1] } : {}) };
    const ends = [-reach, 0, reach];
    const ticks = against ? { tickvals: ends, ticktext: ends.map((v) => v.toFixed(3).replace("-", "−")) } : { nticks: 4 };
    return {
      height: 96 + Math.max(80, (all > 24 ? 12 : 20) * all),
      data: [
        {
          type: "heatmap", z, ...colours, customdata: shown.map(() => channels),
          text: shown.map(({ name }) => channels.map(() => whole(name))),
          hovertemplate: `%{text}<br>channel %{customdata}: %{z:${against ? "+" : ""}.3f}<extra></extra>`,
          colorbar: {
            orientation: "h", thickness: 10, len: 0.6, x: 0, xanchor: "left", y: 1, yanchor: "bottom", outlinewidth: 0,
            tickangle: 0, ...ticks, tickfont: { color: "@muted", size: 12 },
          },
        },
      ],
      layout: {
        // Beside a lying colour bar plotly would put the title with a standoff into the figure.
        xaxis: { title: { text: orders[chosen.order], standoff: null }, showgrid: false, showticklabels: chosen.order === "number" },
        yaxis: { showgrid: false, tickvals: shown.map((_, i) => i), ticktext: shown.map(({ name }) => text(short(name, narrow.matches ? 12 : 22))) },
      },
      table: {
        columns: ["channel", ...shown.map(({ name }) => name)],
        rows: channels.map((c, i) => [c, ...z.map((row) => row[i])]),
      },
    };
  }

  function histogram(chosen) {
    const { low, high, shares } = gateOf(chosen).histogram;
    const bins = shares[all].length;
    const edges = shares[all].map((_, i) => low + ((high - low) * i) / bins);
    const traces = series.map((s) => ({
      x: [...edges, high], y: [...shares[s.row], shares[s.row][bins - 1]].map((v) => 100 * v), mode: "lines",
      line: { color: s.color, dash: s.dash, width: s.row === all ? 2.5 : 1.6, shape: "hv" },
      ...(s.row === all ? { fill: "tozeroy", fillcolor: `${s.color}/0.1` } : {}),
      legendgroup: s.key, name: text(short(s.name)), hovertemplate: `${whole(s.name)}<br>s from %{x:.3f}: %{y:.2f} %<extra></extra>`,
    }));
    return {
      data: traces.reverse(),
      layout: { xaxis: scaled(gateOf(chosen), chosen.scale, { title: { text: "s" }, showgrid: false }), yaxis: { title: { text: "% of values" }, rangemode: "tozero" } },
      table: {
        columns: ["s from", "to", ...series.map((s) => `${s.name}, %`)],
        rows: edges.map((e, i) => [e, e + (high - low) / bins, ...series.map((s) => 100 * shares[s.row][i])]),
      },
    };
  }

  function opened(chosen) {
    const gate = gateOf(chosen);
    const [mean, sd] = [meansOf(gate)[all], sdsOf(gate)[all]];
    const shifts = gate.shifts[chosen.image] || [];
    return {
      height: 80 + 22 * Math.max(shifts.length, 3),
      data: [
        {
          type: "bar", orientation: "h", x: shifts.map(([, , z]) => z), y: shifts.map((_, i) => i),
          marker: { color: shifts.map(([, , z]) => (z < 0 ? "@2" : "@1")) },
          customdata: shifts.map(([c, s]) => [c, s, mean[c], sd[c]]),
          hovertemplate: "channel %{customdata[0]}: s %{customdata[1]:.3f}<br>all images %{customdata[2]:.3f} ± %{customdata[3]:.3f}<extra></extra>",
        },
      ],
      layout: {
        xaxis: { title: { text: "standard deviations" }, zeroline: true, zerolinecolor: "@muted" },
        yaxis: {
          autorange: "reversed", showgrid: false, tickvals: shifts.map((_, i) => i),
          ticktext: shifts.map(([c, s]) => `${c}: ${s.toFixed(3)} (${mean[c].toFixed(3)})`),
        },
      },
      table: {
        columns: ["channel", "s in this image", "mean over all", "deviation over all", "standard deviations from the mean"],
        rows: shifts.map(([c, s, z]) => [c, s, mean[c], sd[c], z]),
      },
    };
  }

  const className = (k) => data.names[k] ?? "";
  const wrong = (image) => image.predicted >= 0 && image.predicted !== image.label;

  function picture(image, element) {
    if (!image.thumb) return element("span", { class: "missing" }, "no picture");
    return element("img", { src: image.thumb, alt: image.name, ...(image.small ? { class: "small" } : {}) });
  }

  function card(chosen, slot, element) {
    if (slot.dataset.shows === chosen.image) return;
    slot.dataset.shows = chosen.image;
    const image = data.images[chosen.image];
    if (!image) {
      slot.replaceChildren(element("p", {}, "No image of this kind is among those kept for the page."));
      return;
    }
    const facts = [["Image", image.name], ["Class", className(image.label)]];
    if (image.predicted >= 0) {
      facts.push(["Taken for", className(image.predicted) + (wrong(image) ? " (wrong)" : " (right)")]);
      facts.push(["Loss", image.loss.toFixed(3)]);
    }
    const lines = facts.map(([k, v]) => element("div", {}, element("dt", {}, k), element("dd", {}, v)));
    slot.replaceChildren(element("div", { class: "card" }, picture(image, element), element("dl", {}, ...lines)));
  }

  function tops(chosen, slot, element) {
    const shows = `${chosen.gate} ${chosen.channel}`;
    if (slot.dataset.shows === shows) return;
    slot.dataset.shows = shows;
    const found = gateOf(chosen).tops.find((t) => String(t.channel) === chosen.channel);
    if (!found) {
      slot.replaceChildren(element("p", {}, "No images are kept for this gate."));
      return;
    }
    const items = found.images.map(([id, s]) => {
      const image = data.images[id];
      const named = (k) => element("span", { title: className(k) }, short(className(k), 40));
      const said = [element("b", {}, `s ${s.toFixed(3)}`), element("br"), named(image.label)];
      if (wrong(image)) said.push(element("br"), "taken for ", named(image.predicted));
      return element("figure", {}, picture(image, element), element("figcaption", {}, ...said));
    });
    const c = found.channel;
    const usual = `Over all images s of channel ${c} is ${meansOf(gateOf(chosen))[all][c].toFixed(3)} ± ${sdsOf(gateOf(chosen))[all][c].toFixed(3)}.`;
    slot.replaceChildren(element("div", { class: "tops" }, ...items), element("p", {}, usual));
  }

  const kinds = {
    all: () => true,
    wrong,
  };

  function imagesOf(chosen) {
    const fits = kinds[chosen.of] || ((image) => String(image.label) === chosen.of);
    return data.listed
      .filter((id) => fits(data.images[id]))
      .map((id) => {
        const image = data.images[id];
        const mistake = wrong(image) ? `, taken for ${short(className(image.predicted))}` : "";
        return [String(id), `${short(image.name, 40)} (${short(className(image.label))}${mistake})`];
      });
  }

  const channelsOf = (chosen) => gateOf(chosen).tops.map((t) => [String(t.channel), `channel ${t.channel}`]);

  globalThis.live = {
    makers: { curves, heat, histogram, opened },
    slots: { card, tops },
    options: { image: imagesOf, channel: channelsOf },
  };
})();
