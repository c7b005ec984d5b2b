"use strict";
// Slices that follow their sliders, one request at a time.
for (const figure of document.querySelectorAll(".slices figure")) {
  const picture = figure.querySelector("img"), slider = figure.querySelector("input"), said = figure.querySelector("output");
  let busy = false, wanted = slider.value;
  const next = () => {
    const address = picture.dataset.slice + wanted;
    if (busy || picture.getAttribute("src") === address) return;
    busy = true;
    picture.src = address;
  };
  for (const event of ["load", "error"]) picture.addEventListener(event, () => { busy = false; next(); });
  slider.addEventListener("input", () => { wanted = slider.value; said.textContent = wanted; next(); });
}
const file = find("#file");
file.addEventListener("change", () => file.form.requestSubmit());
