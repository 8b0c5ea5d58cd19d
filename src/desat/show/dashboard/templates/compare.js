"use strict";
// Runs side by side: a table of facts, their losses in one figure, and one figure of each.
(() => {
  const box = document.querySelector("#comparison-box"), trouble = document.querySelector("#trouble");
  const { query } = box.dataset;
  let first = true;

  function tell(text) {
    trouble.textContent = text ?? "";
    trouble.hidden = !text;
  }

  async function view(name) {
    const { view: found, problem } = await (await fetch(`/compare/views/${name}?${query}${first ? "" : "&live"}`)).json();
    if (problem) tell(problem);
    return found;
  }

  function row(cells, tag) {
    const made = document.createElement("tr");
    made.append(...cells.map((text, index) => {
      const cell = document.createElement(index && tag === "td" ? "td" : "th");
      cell.scope = tag === "th" ? "col" : "row";
      cell.textContent = text;
      return cell;
    }));
    return made;
  }

  async function compare() {
    const { table: rows, problem } = await (await fetch(`/compare/table?${query}${first ? "" : "&live"}`)).json();
    if (problem) { tell(problem); return; }
    const table = document.createElement("table");
    table.className = "comparison";
    table.createTHead().append(row(rows[0], "th"));
    table.createTBody().append(...rows.slice(1).map((cells) => row(cells, "td")));
    document.querySelector("#comparison-table").replaceChildren(table);
  }

  box.addEventListener("change", ({ target }) => {
    if (target.name !== "compared") return;
    for (const place of box.querySelectorAll("[data-number]")) place.dataset.view = `${place.dataset.number}/${target.value}`;
    desat.refresh({});
  });

  async function begin() {
    await Promise.all([compare(), desat.mount(box, view)]);
    first = false;
    document.documentElement.dataset.ready = "";
    let stream, known;
    const listen = () => {
      stream?.close();
      if (document.hidden) return;
      stream = new EventSource(`/events?${query}`);
      stream.addEventListener("open", () => tell());
      stream.addEventListener("refresh", async ({ data }) => {
        if (known !== undefined && known !== data) { await compare(); await desat.refresh({}); }
        known = data;
      });
      stream.addEventListener("error", () => tell("desat does not answer: the page stays as it was."));
    };
    listen();
    document.addEventListener("visibilitychange", listen);
  }

  begin();
})();
