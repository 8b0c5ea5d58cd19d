"use strict";
// One figure: drawn by plotly.js, saved as a picture, told as a table.
var desat = window.desat || {};
(() => {
  const scheme = window.matchMedia("(prefers-color-scheme: dark)");
  const kinds = { f4: Float32Array, i4: Int32Array };
  const options = { responsive: true, displaylogo: false, displayModeBar: false };
  const mostRows = 60, narrow = 520;

  // A plain loop: for the megabytes of a page it takes a tenth of the time that Uint8Array.from does.
  function octets(base64) {
    const text = atob(base64);
    const made = new Uint8Array(text.length);
    for (let place = 0; place < text.length; place += 1) made[place] = text.charCodeAt(place);
    return made;
  }

  // Numbers come packed, as { dtype, bdata, shape }; a plain list is handed back as it is.
  function numbers(packed) {
    if (packed === undefined || packed === null || Array.isArray(packed)) return packed ?? [];
    const flat = new kinds[packed.dtype](octets(packed.bdata).buffer);
    if (packed.shape === undefined) return flat;
    const [rows, columns] = packed.shape.split(",").map(Number);
    return Array.from({ length: rows }, (_, row) => flat.subarray(row * columns, (row + 1) * columns));
  }

  // Text in figures is escaped for plotly, which takes some HTML as markup.
  function unescaped(text) {
    return new DOMParser().parseFromString(String(text), "text/html").documentElement.textContent;
  }

  function escaped(text) {
    return text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  }

  function inked(layout) {
    return { ...layout, font: { ...layout.font, color: scheme.matches ? "#c9d1d9" : "#3d444d" } };
  }

  // On a narrow screen names give way to the picture: they keep their ends, which tell them apart.
  function narrowed(figure) {
    const { layout } = figure;
    const cut = (text) => {
      const whole = unescaped(text).replace(/ \([^()]*\)$/, "");
      return whole.length > 14 ? escaped(`…${whole.slice(-13)}`) : escaped(whole);
    };
    const yaxis = layout.yaxis.ticktext ? { ...layout.yaxis, ticktext: layout.yaxis.ticktext.map(cut) } : layout.yaxis;
    const data = figure.data.map((trace) => (trace.colorbar ? { ...trace, colorbar: laid(trace.colorbar) } : trace));
    const room = data.some((trace) => trace.colorbar) ? 60 : 0;
    const margin = { ...layout.margin, t: layout.margin.t + room };
    return { data, layout: { ...layout, yaxis, margin, height: layout.height + room, xaxis: { ...layout.xaxis, nticks: 4 } } };
  }

  function laid(bar) {
    const title = bar.title ? { ...bar.title, side: "top" } : undefined;
    return { ...bar, title, orientation: "h", y: 1, yanchor: "bottom", thickness: 8 };
  }

  // Marks are shapes over the figure's own: what was chosen elsewhere in the page.
  async function draw(place, figure, marks = []) {
    const shown = place.clientWidth < narrow ? narrowed(figure) : figure;
    const layout = inked({ ...shown.layout, shapes: [...(shown.layout.shapes ?? []), ...marks] });
    place.style.height = `${layout.height}px`;
    await Plotly.react(place, shown.data, layout, options);
    place.figure = figure;
    if (!place.nextElementSibling?.classList.contains("tools")) place.after(tools(place));
    place.nextElementSibling.querySelector(".told")?.replaceWith(told(place.figure));
  }

  function button(text, label, act) {
    const made = document.createElement("button");
    Object.assign(made, { type: "button", textContent: text });
    made.setAttribute("aria-label", label);
    made.addEventListener("click", () => act(made));
    return made;
  }

  function tools(place) {
    const title = document.getElementById(place.getAttribute("aria-labelledby"))?.textContent ?? "figure";
    const bar = document.createElement("div");
    bar.className = "tools";
    const save = (format) => () => {
      const name = `${document.title.split(" ·")[0]} ${title}`.replace(/[^\w.-]+/g, "-");
      Plotly.downloadImage(place, { format, filename: name, scale: 2, width: place.clientWidth, height: place.clientHeight });
    };
    bar.append(button("PNG", `save ${title} as PNG`, save("png")), button("SVG", `save ${title} as SVG`, save("svg")));
    const numbered = button("Numbers", `numbers of ${title}`, () => {
      const open = bar.querySelector(".told");
      if (open) open.remove();
      else bar.append(told(place.figure));
      numbered.setAttribute("aria-expanded", String(!open));
    });
    numbered.setAttribute("aria-expanded", "false");
    bar.append(numbered);
    return bar;
  }

  function shortened(value) {
    return typeof value === "number" ? (Number.isFinite(value) ? Number(value.toPrecision(4)).toString() : "–") : value;
  }

  function ofMap(trace, meta) {
    const rows = numbers(trace.z).map((row, index) => {
      const known = Array.from(row).filter(Number.isFinite);
      const name = trace.text ? trace.text[index][0] : meta?.names?.[index] ?? trace.y[index];
      return [name, row[0], row[row.length - 1], Math.min(...known), Math.max(...known)];
    });
    return [["", "first", "last", "smallest", "largest"], rows];
  }

  function ofBars(traces, axis) {
    const names = new Map(axis.tickvals.map((value, index) => [value, axis.ticktext[index]]));
    const rows = traces.flatMap((trace) =>
      trace.y.map((key, index) => [key, trace.customdata?.[index]?.[0] ?? names.get(key) ?? key, trace.name, trace.x[index]]));
    return [["", "cause", "dB"], rows.sort((one, other) => (one[0] < other[0] ? -1 : 1)).map((row) => row.slice(1))];
  }

  function ofLines(traces) {
    const rows = traces.filter((trace) => trace.fill !== "toself").flatMap((trace) => {
      const [x, y] = [numbers(trace.x), numbers(trace.y)];
      const stride = Math.max(1, Math.ceil(x.length / mostRows));
      return Array.from(x).flatMap((step, index) => (index % stride ? [] : [[trace.name ?? "", step, y[index]]]));
    });
    return [["", "step", "value"], rows];
  }

  function told(figure) {
    const [first] = figure.data;
    const [head, rows] = first?.type === "heatmap" ? ofMap(first, figure.layout.meta)
      : first?.type === "bar" ? ofBars(figure.data, figure.layout.yaxis) : ofLines(figure.data);
    const table = document.createElement("table");
    const row = (cells, tag) => {
      const made = document.createElement("tr");
      made.append(...cells.map((cell, index) => {
        const one = document.createElement(index && tag === "td" ? "td" : "th");
        one.scope = tag === "th" ? "col" : "row";
        one.textContent = unescaped(shortened(cell));
        return one;
      }));
      return made;
    };
    table.createTHead().append(row(head, "th"));
    table.createTBody().append(...rows.map((cells) => row(cells, "td")));
    const box = document.createElement("div");
    box.className = "told scroll";
    box.tabIndex = 0;
    box.append(table);
    return box;
  }

  scheme.addEventListener("change", () => {
    for (const place of document.querySelectorAll(".plot")) {
      if (place.figure) Plotly.relayout(place, { "font.color": inked(place.figure.layout).font.color });
    }
  });

  Object.assign(desat, { draw, numbers, octets });
  window.desat = desat;
})();
