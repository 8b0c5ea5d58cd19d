"use strict";
// A run's page: asks for what it shows, and follows the run while it trains, unless it is frozen.
(() => {
  const one = (selector) => document.querySelector(selector);
  const [box, trouble] = [one("#run"), one("#trouble")];
  const kept = new Map();
  let seen, outline, root, stream, busy = false, again = false, isLossAlone = false, isFrozen = false, isMissed = false;

  function tell(text) {
    trouble.textContent = text ?? "";
    trouble.hidden = !text;
  }

  async function asked(place, isLive) {
    const answer = await fetch(`${box.dataset.path}/${place}${isLive ? (isLossAlone ? "?live=loss" : "?live") : ""}`);
    return answer.json();
  }

  // What stands in the record only changes with a sample, but for the loss, and with the end of the run.
  async function view(name) {
    const mark = `${seen.sampled} ${seen.state}`;
    if (name !== "loss" && kept.has(name) && (isLossAlone || kept.get(name).mark === mark)) return kept.get(name).found;
    const { view: found, problem } = await asked(`views/${name}`, kept.has(name));
    if (problem) tell(problem);
    kept.set(name, { mark, found });
    return found;
  }

  async function load() {
    const { html, outline: told, problem } = await asked("page", root !== undefined);
    if (problem) {
      if (root) tell(problem);
      else one("#waiting").textContent = problem;
      return;
    }
    kept.clear();
    outline = told;
    root = document.createElement("div");
    root.innerHTML = html;
    box.replaceChildren(root);
    await desat.mount(root, view);
  }

  async function refresh() {
    if (busy) { again = true; return; }
    busy = true;
    const { step } = seen;
    try {
      tell();
      if (!root) await load();
      else {
        const { parts, outline: told, problem } = await asked("parts", true);
        if (problem) tell(problem);
        else if (told !== outline) await load();
        else await desat.refresh(parts);
      }
      document.documentElement.dataset.shown = document.documentElement.dataset.drawn = String(step);
    } catch (error) {
      tell(`It could not be shown: ${error.message}`);
    }
    busy = false;
    document.documentElement.dataset.ready = "";
    if (again) { again = false; refresh(); }
  }

  async function refreshLoss() {
    if (busy || !root) return;
    busy = isLossAlone = true;
    const { step } = seen;
    try {
      await desat.refresh({});
      document.documentElement.dataset.drawn = String(step);
    } catch (error) {
      tell(`It could not be shown: ${error.message}`);
    }
    busy = isLossAlone = false;
    if (again) { again = false; refresh(); }
  }

  function look(now) {
    seen = now;
    const state = one("#state");
    state.className = `state ${now.state.replace(/\W/g, "")}`;
    state.textContent = now.problem ? "✖ cannot be read" : `${now.sign} ${now.state}`;
    one("#step").textContent = now.step < 0 ? "–" : now.step.toLocaleString("en");
    one("#current-loss").textContent = now.loss;
    one("#freeze").hidden = !now.live && !isFrozen;
    const follows = "follows" in box.dataset && !isFrozen && !one("#stay").checked;
    if (follows && now.newest && now.newest !== now.name) location.reload();
  }

  function isShown(now) {
    return root && String(now.step) === box.dataset.step && String(now.sampled) === box.dataset.sampled && now.state === box.dataset.state;
  }

  function listen() {
    stream?.close();
    stream = undefined;
    if (document.hidden) return;
    stream = new EventSource(`${box.dataset.path}/events`);
    stream.addEventListener("open", () => tell());
    stream.addEventListener("look", ({ data }) => look(JSON.parse(data)));
    stream.addEventListener("refresh", ({ data }) => {
      const now = JSON.parse(data);
      seen = now;
      if (isShown(now)) return;
      Object.assign(box.dataset, { step: now.step, sampled: now.sampled, state: now.state });
      if (isFrozen) isMissed = true;
      else refresh();
    });
    stream.addEventListener("loss", ({ data }) => {
      seen = JSON.parse(data);
      if (!isFrozen) refreshLoss();
    });
    stream.addEventListener("gone", ({ data }) => { stream.close(); tell(JSON.parse(data).problem); });
    stream.addEventListener("error", () => tell("desat does not answer: the page stays as it was. It goes on as soon as `desat serve` runs again."));
  }

  function wait() {
    const folder = new EventSource("/events");
    folder.addEventListener("refresh", ({ data }) => { if (JSON.parse(data).newest) location.reload(); });
    document.documentElement.dataset.ready = "";
  }

  async function begin() {
    seen = { state: box.dataset.state, step: Number(box.dataset.step), sampled: Number(box.dataset.sampled) };
    one("#freeze").addEventListener("click", ({ target }) => {
      isFrozen = !isFrozen;
      target.setAttribute("aria-pressed", String(isFrozen));
      target.textContent = isFrozen ? "Frozen: go on" : "Freeze";
      if (!isFrozen && isMissed) { isMissed = false; refresh(); }
    });
    await refresh();
    listen();
    document.addEventListener("visibilitychange", listen);
  }

  if (box) begin();
  else if (one("#no-run")) wait();
})();
