"use strict";
// A run's figures and what joins them: choose a finding, a row, a bar or a site, and all the others show it.
(() => {
  const rowHeight = 19, tallest = 720, labelHeight = 13;
  const chosen = { site: null, steps: null };
  let get, root;

  const one = (selector) => root.querySelector(selector);
  const marker = { type: "rect", line: { width: 2, color: "#E69F00" }, fillcolor: "rgba(230,159,0,0.12)" };

  // The rows of a heat map whose names have all the words of the filter; few rows are tall, many thin.
  function filtered(figure, words) {
    const { meta } = figure.layout;
    const kept = meta.names.flatMap((name, row) => (words.every((word) => name.toLowerCase().includes(word)) ? [row] : []));
    const [trace] = figure.data;
    const z = desat.numbers(trace.z);
    const pick = (list) => kept.map((row) => list[row]);
    const height = Math.min(Math.max(kept.length, 3) * rowHeight, tallest);
    const stride = Math.max(1, Math.ceil((kept.length * labelHeight) / height));
    const y = pick(trace.y);
    const axis = { tickmode: "array", tickvals: y.filter((_, row) => row % stride === 0), ticktext: pick(meta.labels).filter((_, row) => row % stride === 0) };
    const text = pick(meta.names).map((name) => new Array(trace.x.length).fill(name));
    return {
      data: [{ ...trace, y, z: pick(z), text }],
      layout: { ...figure.layout, height: height + 130, yaxis: { ...figure.layout.yaxis, ...axis }, meta: { ...meta, sites: pick(meta.sites), names: pick(meta.names) } },
    };
  }

  function column(steps, step) {
    let found = 0;
    for (let index = 0; index < steps.length && steps[index] <= step; index++) found = index;
    return found;
  }

  function marksOn(view, figure) {
    if (view === "loss" && chosen.steps) {
      return [{ ...marker, yref: "paper", x0: chosen.steps[0], x1: chosen.steps[1], y0: 0, y1: 1 }];
    }
    if (!view.startsWith("heat/")) return [];
    const steps = desat.numbers(figure.layout.meta.steps);
    const row = figure.layout.meta.sites.indexOf(chosen.site);
    if (row < 0 && !chosen.steps) return [];
    const [first, last] = chosen.steps ? chosen.steps.map((step) => column(steps, step)) : [0, steps.length - 1];
    const [top, bottom] = row < 0 ? [0, figure.layout.meta.sites.length - 1] : [row, row];
    return [{ ...marker, x0: first - 0.5, x1: last + 0.5, y0: top - 0.5, y1: bottom + 0.5 }];
  }

  async function show(place) {
    const { view } = place.dataset;
    const found = await get(view);
    if (view !== place.dataset.view) return;
    const section = place.closest("section");
    if (!found) {
      if (view === "budget") section.hidden = true;
      else absent(place, true);
      return;
    }
    absent(place, false);
    section.hidden = false;
    const isMap = found.layout.meta?.labels !== undefined;
    const figure = isMap ? filtered(found, words()) : found;
    await desat.draw(place, figure, marksOn(view, figure));
    if (isMap) tellPooled(found.layout.meta.pooled);
    if (!place.heard) {
      place.heard = true;
      place.on("plotly_click", ({ points: [point] }) => clicked(place, point));
    }
  }

  function absent(place, is) {
    if (is && place.figure) {
      Plotly.purge(place);
      place.figure = undefined;
      place.heard = false;
      place.nextElementSibling?.remove();
    }
    if (is) Object.assign(place, { textContent: "Nothing of this was measured." }).style.height = "";
    else if (!place.figure) place.textContent = "";
  }

  function words() {
    return (one("#filter")?.value ?? "").toLowerCase().split(/\s+/).filter(Boolean);
  }

  function tellPooled(samples) {
    const note = one("#pooled");
    if (!note) return;
    note.hidden = samples < 2;
    note.textContent = `Each column is the mean of ${samples} samples.`;
  }

  function clicked(place, point) {
    if (place.dataset.view === "budget") choose(point.customdata[2], null);
    else if (place.dataset.view.startsWith("heat/")) choose(place.figure.layout.meta.sites[point.pointNumber[0]], null);
  }

  async function choose(site, steps, scroll = true) {
    if (site !== null) chosen.site = site;
    chosen.steps = steps;
    remember();
    const places = [...root.querySelectorAll('.plot[data-view="loss"], #heat-map')];
    await Promise.all([...places.map(show), showSite()]);
    if (scroll && chosen.site !== null) one("#site")?.scrollIntoView({ block: "start" });
  }

  async function showSite() {
    const box = one("#site-detail");
    if (!box || chosen.site === null) return;
    one("#site-choice").value = String(chosen.site);
    const text = (await get(`site/${chosen.site}`)) ?? "";
    if (box.told !== text) {
      box.innerHTML = text;
      box.told = text;
    }
    await Promise.all([...box.querySelectorAll(".plot")].map(show));
  }

  function remember() {
    const told = new URLSearchParams();
    if (chosen.site !== null) told.set("site", chosen.site);
    if (chosen.steps) told.set("steps", chosen.steps.join("-"));
    history.replaceState(null, "", `#${told}`);
  }

  function recall() {
    const told = new URLSearchParams(location.hash.slice(1));
    const choice = one("#site-choice");
    const known = (value) => [...(choice?.options ?? [])].some((option) => option.value === value);
    if (known(told.get("site"))) chosen.site = Number(told.get("site"));
    else if (choice?.value) chosen.site = Number(choice.value);
    const steps = /^(\d+)-(\d+)$/.exec(told.get("steps") ?? "");
    if (steps) chosen.steps = [Number(steps[1]), Number(steps[2])];
  }

  function step(by) {
    const { options, selectedIndex } = one("#site-choice");
    const next = options[selectedIndex + by];
    if (next) choose(Number(next.value), chosen.steps, false);
  }

  function wire() {
    root.addEventListener("click", ({ target }) => {
      const button = target.closest?.("button[data-site]");
      if (!button) return;
      const { site, first, last } = button.dataset;
      choose(site ? Number(site) : null, first ? [Number(first), Number(last)] : null);
    });
    const map = one("#heat-map");
    root.addEventListener("change", ({ target }) => {
      if (target.name === "heat") {
        for (const caption of root.querySelectorAll("[data-heat]")) caption.hidden = caption.dataset.heat !== target.value;
        map.dataset.view = `heat/${target.value}`;
        show(map);
      } else if (target.id === "site-choice") choose(Number(target.value), chosen.steps, false);
    });
    one("#filter")?.addEventListener("input", () => show(map));
    one("#site-before")?.addEventListener("click", () => step(-1));
    one("#site-after")?.addEventListener("click", () => step(1));
  }

  // Draws every figure below `within`. ask: gives what is shown by its name, undefined for what there is not.
  async function mount(within, ask) {
    get = ask;
    root = within;
    recall();
    wire();
    await Promise.all([...[...root.querySelectorAll(".plot")].map(show), showSite()]);
  }

  // Shows what has become of a run. parts: HTML by the name of its part; only what has changed is replaced.
  async function refresh(parts) {
    for (const [name, text] of Object.entries(parts)) {
      const place = one(`[data-part="${CSS.escape(name)}"]`);
      if (!place || place.told === text || place.contains(document.activeElement)) continue;
      const open = [...place.querySelectorAll("details")].map((details) => details.open);
      place.innerHTML = text;
      place.told = text;
      [...place.querySelectorAll("details")].forEach((details, index) => { details.open = open[index] ?? false; });
    }
    const places = [...root.querySelectorAll(".plot")].filter((place) => !place.closest("#site-detail"));
    await Promise.all([...places.map(show), showSite()]);
  }

  Object.assign(desat, { mount, refresh });
})();
