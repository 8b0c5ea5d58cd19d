"use strict";
// A slider that is let go asks for a new measurement; the last one asked for is the one that is shown.
const form = document.getElementById("knobs");
const measured = document.getElementById("measured");
let asked = 0;

function shown(input) {
  const value = "logarithmic" in input.dataset ? 10 ** Number(input.value) : Number(input.value);
  input.nextElementSibling.value = Number(value.toPrecision(3)).toString();
}

async function measure() {
  const number = ++asked;
  const query = new URLSearchParams(new FormData(form)).toString();
  measured.setAttribute("aria-busy", "true");
  try {
    const answer = await fetch(`/measure?${query}`);
    const text = await answer.text();
    if (number !== asked) return;
    if (answer.ok) measured.innerHTML = text;
    else measured.textContent = text;
    history.replaceState(null, "", `/?${query}`);
  } catch {
    if (number === asked) measured.textContent = "The server does not answer: start `desat deck --serve` again.";
  } finally {
    if (number === asked) measured.removeAttribute("aria-busy");
  }
}

form.addEventListener("input", (event) => { if (event.target.type === "range") shown(event.target); });
form.addEventListener("change", measure);
form.addEventListener("submit", (event) => { event.preventDefault(); measure(); });
