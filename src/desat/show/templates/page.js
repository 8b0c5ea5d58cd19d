"use strict";
// Every figure is drawn from the JSON beside it; the colours of text and grid follow the page's scheme.
const scheme = window.matchMedia("(prefers-color-scheme: dark)");
const ink = () => ({ "font.color": scheme.matches ? "#c9d1d9" : "#3d444d" });
for (const place of document.querySelectorAll(".plot")) {
  const figure = JSON.parse(document.getElementById(place.dataset.figure).textContent);
  const options = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"] };
  Plotly.newPlot(place, figure.data, figure.layout, options).then(() => Plotly.relayout(place, ink()));
}
scheme.addEventListener("change", () => {
  for (const place of document.querySelectorAll(".plot")) Plotly.relayout(place, ink());
});
