// Several runs of a row, side by side: what each holds after a look, what it weighs, and which one it was copied from.

let runs = []; // {index, generation, column, events} of the row that is shown; none where it has one run

const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;

/** Runs of the generation's row, where the page holds all of them. */
function siblingsOf(index) {
  const run = generations[index].run;
  if (run === null) return [];
  const first = index - run.number;
  const found = generations.slice(Math.max(0, first), first + run.of);
  if (first < 0 || found.length < run.of || !found.every((one, number) => one.run !== null && one.run.number === number)) return [];
  return found.map((generation, number) => ({ ...viewOf(generation), index: first + number }));
}

function layRuns() {
  runs = siblingsOf(at.generation);
  byId("runs").hidden = runs.length === 0;
  const cards = runs.map((one) => {
    const run = one.generation.run;
    const card = element("button", { type: "button", class: "run", "aria-pressed": one.index === at.generation });
    const name = element("strong", {}, `run ${run.number + 1}`, run.kept ? " \u2714" : "");
    card.append(element("span", { class: "head" }, name, element("span", {}, `worth ${run.score.toPrecision(4)}`)));
    card.append(element("span", { class: "weight" }), layMini(one.generation));
    card.addEventListener("click", () => {
      pause();
      const look = at.look;
      show(one.index);
      byId("which").value = one.index;
      go(look);
    });
    return card;
  });
  byId("cards").replaceChildren(...cards);
}

function layMini(generation) {
  const mini = element("span", { class: `mini ${generation.columns === null ? "text" : "grid"}`, "aria-hidden": "true" });
  const cells = generation.start.map((_, position) => {
    const cell = element("span", { class: "cell" }, element("span", { class: "token" }));
    if (generation.columns !== null) frame(cell, position, generation.columns, generation.start.length / generation.columns);
    return cell;
  });
  if (generation.columns === null) mini.append(...cells);
  else {
    for (let start = 0; start < cells.length; start += generation.columns) {
      mini.append(element("span", { class: "line" }, ...cells.slice(start, start + generation.columns)));
    }
  }
  return mini;
}

function drawRuns() {
  if (runs.length === 0) return;
  runs.forEach((one, number) => {
    const card = byId("cards").children[number];
    card.querySelector(".weight").replaceChildren(...weightOf(one.generation.run));
    const look = Math.min(at.look, one.generation.looks.length);
    card.querySelectorAll(".token").forEach((token, position) => {
      const state = stateOf(one, position, look);
      token.dataset.state = state.kind;
      const piece = state.kind === "masked" ? "" : visible(one.generation.pieces[state.piece]);
      token.textContent = one.generation.columns === null ? piece : piece.trim();
    });
  });
  drawLineage();
}

/** What a run weighed when it was last weighed, and which it was copied from then. */
function weightOf(run) {
  const weighed = run.weighings.filter(([look]) => look <= at.look).pop();
  if (weighed === undefined) return [run.weighings.length ? "not weighed yet" : ""];
  const [look, share, ancestor] = weighed;
  const bar = element("i", { class: "bar" }, element("i", { style: `width: ${100 * share}%` }));
  const from = ancestor === run.number ? "goes on" : `is a copy of run ${ancestor + 1} since`;
  return [bar, `weighed ${percent(share)} after look ${look}, ${from}`];
}

/** Looks from left to right, a line for each run: who was copied from whom, weights as dots, those that led to what was kept strong. */
function drawLineage() {
  const svg = byId("lineage");
  svg.hidden = runs[0].generation.run.weighings.length === 0;
  if (svg.hidden) return;
  const [width, gap] = [svg.clientWidth - 16, 18];
  const total = Math.max(1, view.generation.looks.length);
  const x = (look) => 8 + (look / total) * width;
  const y = (number) => 10 + number * gap;
  svg.style.height = `${runs.length * gap + 4}px`;
  const drawn = [];
  const weighings = runs[0].generation.run.weighings.length;
  let strong = new Set(runs.filter((one) => one.generation.run.kept).map((one) => one.generation.run.number));
  for (let moment = weighings; moment >= 0; moment -= 1) {
    const [from, to] = [moment === 0 ? 0 : runs[0].generation.run.weighings[moment - 1][0], moment === weighings ? total : runs[0].generation.run.weighings[moment][0]];
    const before = new Set();
    runs.forEach((one, number) => {
      const kept = strong.has(number) ? " kept" : "";
      const [, share, ancestor] = moment === 0 ? [0, 0, number] : one.generation.run.weighings[moment - 1];
      const bend = x(Math.min(from + 0.35 * Math.max(to - from, 0.5), to));
      drawn.push(element("path", { class: `line${kept}`, d: `M${x(from)},${y(ancestor)}C${bend},${y(ancestor)} ${x(from)},${y(number)} ${bend},${y(number)}L${x(to)},${y(number)}` }));
      if (kept) before.add(ancestor);
      if (moment > 0) drawn.push(element("circle", { class: "dot", cx: x(from), cy: y(number), r: 1.5 + 6 * Math.sqrt(share) }));
    });
    strong = before;
  }
  drawn.push(element("line", { class: "here", x1: x(at.look), x2: x(at.look), y1: 0, y2: runs.length * gap }));
  svg.replaceChildren(...drawn);
}
