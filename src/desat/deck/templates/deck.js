"use strict";
// Arrow keys go from slide to slide; Home goes to the contents. Keys that belong to something else are left alone.
const slides = [...document.querySelectorAll("section.slide:not(.absent)")];
const calm = window.matchMedia("(prefers-reduced-motion: reduce)");

function goTo(place) {
  place.scrollIntoView({ behavior: calm.matches ? "auto" : "smooth", block: "start" });
  if (place.classList.contains("slide")) place.focus({ preventScroll: true });
  if (place.id) history.replaceState(null, "", place.id === "top" ? " " : `#${place.id}`);
}

// While the page is still gliding to a slide, the next press starts from there and not from what is in view.
let target = null;
addEventListener("scrollend", () => { target = null; });
addEventListener("wheel", () => { target = null; }, { passive: true });

function current() {
  if (target !== null) return target;
  const edge = innerHeight * 0.3;
  return slides.findLastIndex((slide) => slide.getBoundingClientRect().top <= edge);
}

addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
  if (event.target instanceof Element && event.target.closest("input, textarea, select, [contenteditable]")) return;
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (step !== undefined) {
    event.preventDefault();
    const next = current() + step;
    target = Math.max(-1, Math.min(next, slides.length - 1));
    goTo(target < 0 ? document.getElementById("top") : slides[target]);
  } else if (event.key === "Home") {
    event.preventDefault();
    target = -1;
    goTo(document.getElementById("top"));
  }
});
