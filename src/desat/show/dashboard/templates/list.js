"use strict";
// The list of runs: search, order, choice of what to compare; and it follows what happens in the folder.
(() => {
  const one = (selector) => document.querySelector(selector);
  const [rows, search, chosen] = [one("#rows"), one("#search"), one("#chosen")];
  const most = Number(chosen.dataset.most);
  const numeric = new Set(["step", "loss"]);
  const order = { key: null, down: false };
  let arrived = [...rows.children].map((row) => row.dataset.name);

  function compared(first, second) {
    const [one, other] = [first.dataset[order.key] ?? "", second.dataset[order.key] ?? ""];
    if (!numeric.has(order.key)) return one.localeCompare(other);
    const [number, another] = [parseFloat(one), parseFloat(other)];
    // What is no number comes last, whichever way the rest is ordered.
    if (Number.isNaN(number) || Number.isNaN(another)) return (Number.isNaN(number) - Number.isNaN(another)) * (order.down ? -1 : 1);
    return number === another ? 0 : number < another ? -1 : 1;
  }

  function arrange() {
    const places = new Map(arrived.map((name, index) => [name, index]));
    const all = [...rows.children].sort((one, other) => places.get(one.dataset.name) - places.get(other.dataset.name));
    if (order.key) all.sort((one, other) => compared(one, other) * (order.down ? -1 : 1));
    all.forEach((row, index) => { if (rows.children[index] !== row) rows.insertBefore(row, rows.children[index] ?? null); });
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of all) {
      const text = `${row.dataset.name} ${row.dataset.script} ${row.dataset.state} ${row.dataset.verdict}`.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      shown += !row.hidden;
    }
    one("#none").hidden = shown > 0;
    if (all.length) one("#none").textContent = "No run has all these words.";
    const runs = `${all.length} run${all.length === 1 ? "" : "s"}`;
    one("#count").textContent = shown < all.length ? `${shown} of ${runs}` : runs;
    for (const head of document.querySelectorAll("th[data-key]")) {
      if (head.dataset.key === order.key) head.setAttribute("aria-sort", order.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
  }

  function choose() {
    const boxes = [...rows.querySelectorAll('input[name="run"]')];
    const number = boxes.filter((box) => box.checked).length;
    for (const box of boxes) box.disabled = !box.checked && number >= most;
    one("#compare-runs").disabled = number < 2;
    chosen.textContent = number === 0 ? "choose two to five to compare" : number === 1 ? "one chosen, choose another" : `${number} chosen`;
  }

  function remember() {
    const told = new URLSearchParams();
    if (search.value) told.set("search", search.value);
    if (order.key) told.set(order.down ? "down" : "up", order.key);
    history.replaceState(null, "", told.size ? `?${told}` : location.pathname);
  }

  function recall() {
    const told = new URLSearchParams(location.search);
    search.value = told.get("search") ?? "";
    const key = told.get("down") ?? told.get("up");
    if ([...document.querySelectorAll("[data-sort]")].some((button) => button.dataset.sort === key)) Object.assign(order, { key, down: told.has("down") });
  }

  function made(html) {
    const template = document.createElement("template");
    template.innerHTML = html;
    return template.content.firstElementChild;
  }

  // What a row has been told to be, whatever has been chosen and hidden since.
  const told = (row) => [...row.children].map((cell) => cell.outerHTML);
  for (const row of rows.children) row.told = told(row);

  // Cells that are told otherwise are replaced, and no other: what is being clicked, chosen and focused stays.
  async function update() {
    const found = await (await fetch("/rows?live=list")).json();
    if (!Array.isArray(found)) return;
    const known = new Map([...rows.children].map((row) => [row.dataset.name, row]));
    for (const { name, html } of found) {
      const [old, row] = [known.get(name), made(html)];
      known.delete(name);
      const now = told(row);
      if (!old) rows.append(row);
      else if (old.told.length !== now.length) old.replaceWith(row);
      else {
        for (const [key, value] of Object.entries(row.dataset)) old.dataset[key] = value;
        [...row.children].forEach((cell, index) => { if (old.told[index] !== now[index]) old.children[index].replaceWith(cell); });
      }
      (row.isConnected ? row : old).told = now;
    }
    for (const row of known.values()) row.remove();
    arrived = found.map(({ name }) => name);
    arrange();
    choose();
  }

  search.addEventListener("input", () => { arrange(); remember(); });
  search.addEventListener("keydown", (event) => { if (event.key === "Enter") event.preventDefault(); });
  rows.addEventListener("change", choose);
  for (const button of document.querySelectorAll("[data-sort]")) {
    button.addEventListener("click", () => {
      const key = button.dataset.sort;
      // Up, down, and as they came.
      if (order.key !== key) Object.assign(order, { key, down: false });
      else if (!order.down) order.down = true;
      else order.key = null;
      arrange();
      remember();
    });
  }

  let stream;
  function listen() {
    stream?.close();
    stream = undefined;
    if (document.hidden) return;
    stream = new EventSource("/events");
    stream.addEventListener("open", () => { one("#trouble").hidden = true; });
    stream.addEventListener("refresh", () => { update().catch(lost); });
    stream.addEventListener("error", lost);
  }
  function lost() {
    Object.assign(one("#trouble"), { hidden: false, textContent: "desat does not answer: the list stays as it was. It goes on as soon as `desat serve` runs again." });
  }

  recall();
  arrange();
  choose();
  listen();
  document.addEventListener("visibilitychange", listen);
  document.documentElement.dataset.ready = "";
})();
