// The page is whole without this: here a point says its figures beside it, and a line can be picked out of the others.

const tip = document.getElementById("tip");

function say(point) {
  tip.hidden = point === null;
  if (point === null) return;
  tip.textContent = point.getAttribute("aria-label");
  const box = point.querySelector(".target").getBoundingClientRect();
  const left = Math.min(box.right + 6, document.documentElement.clientWidth - tip.offsetWidth - 8);
  tip.style.left = `${Math.max(8, left) + window.scrollX}px`;
  tip.style.top = `${box.top - tip.offsetHeight + window.scrollY}px`;
}

/** Show one line strongly, or all again. */
function pick(chart, name) {
  chart.classList.toggle("one", name !== null);
  for (const line of chart.querySelectorAll(".line")) line.classList.toggle("on", line.dataset.name === name);
}

function pressed(chart) {
  return chart.querySelector("button[aria-pressed='true']")?.dataset.name ?? null;
}

for (const title of document.querySelectorAll(".point title")) title.remove(); // or the browser says it a second time

for (const point of document.querySelectorAll(".point")) {
  for (const begin of ["pointerenter", "focus"]) point.addEventListener(begin, () => say(point));
  for (const end of ["pointerleave", "blur"]) point.addEventListener(end, () => say(null));
}

for (const chart of document.querySelectorAll(".chart")) {
  for (const named of chart.querySelectorAll(".legend button, .name, .way[d]")) {
    const owner = named.closest("[data-name]");
    named.addEventListener("pointerenter", () => pick(chart, owner.dataset.name));
    named.addEventListener("pointerleave", () => pick(chart, pressed(chart)));
  }
  for (const button of chart.querySelectorAll(".legend button")) {
    button.addEventListener("focus", () => pick(chart, button.dataset.name));
    button.addEventListener("blur", () => pick(chart, pressed(chart)));
    button.addEventListener("click", () => {
      const was = button.getAttribute("aria-pressed") === "true";
      for (const other of chart.querySelectorAll(".legend button")) other.setAttribute("aria-pressed", "false");
      button.setAttribute("aria-pressed", String(!was));
      pick(chart, pressed(chart));
    });
  }
}

document.addEventListener("keydown", (event) => event.key === "Escape" && say(null));
