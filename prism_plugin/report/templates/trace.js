// Replays the looks. What a token says is written as text content only, so no token can become markup.

const generations = JSON.parse(document.getElementById("data").textContent);
const at = { generation: 0, look: 0, position: null, pinned: false, timer: null };
const PLAY_MILLISECONDS = 450;

const byId = (id) => document.getElementById(id);
const perMille = (value) => (value < 0 ? "not judged" : (value / 1000).toFixed(3));
const named = (name, value) => [element("dt", {}, name), element("dd", {}, value)];
const times = (count) => (count === 1 ? "once" : count === 2 ? "twice" : `${count} times`);

function element(name, attributes = {}, ...children) {
  const svg = ["line", "path", "circle", "rect", "text", "svg"].includes(name);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// ---- what is drawn once for a generation -------------------------------------------------------------------------------

let view;

function show(number) {
  const generation = generations[number];
  view = { ...viewOf(generation), tokens: [] };
  at.generation = number;
  at.position = null;
  at.pinned = false;
  const judged = generation.looks.some((look) => look.quality !== null);
  document.body.classList.toggle("unjudged", !judged);
  document.body.classList.toggle("unpadded", !generation.looks.some((look) => look.padded.length));
  byId("look").max = generation.looks.length;
  byId("doubt").value = generation.doubt_below / 1000;
  byId("settings").replaceChildren(...Object.entries(generation.settings).flatMap(([name, value]) => named(name, value)));
  layCanvas(generation);
  layRuns();
  drawFigures(generation);
}

function layCanvas(generation) {
  const canvas = byId("canvas");
  const columns = generation.columns;
  for (const part of [canvas, byId("stage"), byId("legend")]) part.className = columns === null ? "text" : "grid";
  for (const token of byId("legend").querySelectorAll(".token:not([data-state='masked'])")) {
    token.replaceChildren(columns === null ? "abc" : "7", ...gauge(token.style.getPropertyValue("--lack") ? 400 : -1));
  }
  view.tokens = generation.start.map((_, position) => {
    const cell = element("span", { class: "cell", role: "button", tabindex: position === 0 ? 0 : -1, "data-position": position });
    if (columns !== null) frame(cell, position, columns, generation.start.length / columns);
    return cell;
  });
  if (columns === null) {
    canvas.replaceChildren(...view.tokens);
    return;
  }
  canvas.style.setProperty("--columns", columns);
  const lines = [];
  for (let start = 0; start < view.tokens.length; start += columns) {
    lines.push(element("div", { class: "line" }, ...view.tokens.slice(start, start + columns)));
  }
  canvas.replaceChildren(...lines);
}

/** Edges of the boxes: of a square grid whose side is a square number, as a Sudoku's, else of the whole. */
function frame(cell, position, columns, lines) {
  const root = Math.sqrt(columns);
  const box = lines === columns && Number.isInteger(root) ? root : Math.max(lines, columns);
  const [line, column] = [Math.floor(position / columns), position % columns];
  cell.classList.toggle("box-left", column % box === 0);
  cell.classList.toggle("box-top", line % box === 0);
  cell.classList.toggle("right", column === columns - 1);
  cell.classList.toggle("bottom", line === lines - 1);
}

function drawFigures(generation) {
  const figures = generation.figures;
  const rows = [
    ["forward passes", figures.num_forward_passes],
    ...(generation.run === null ? [] : [[`of all ${generation.run.of} runs`, generation.run.num_forward_passes]]),
    ["tokens generated", figures.num_generated],
    ["tokens per forward", (figures.num_generated / Math.max(1, figures.num_forward_passes)).toFixed(2)],
    ["times taken back", figures.num_remasked],
    ["times overwritten", figures.num_overwritten],
    ["tokens taken back", figures.num_positions_remasked],
    ["became another token", figures.num_changed],
  ];
  const cells = rows.map(([name, value]) => element("div", {}, ...named(name, String(value))));
  byId("figures").replaceChildren(...cells);
}

// ---- what is drawn at every look ---------------------------------------------------------------------------------------

function draw() {
  const generation = view.generation;
  const doubt = Math.round(Number(byId("doubt").value) * 1000);
  const counts = { masked: 0, filled: 0, overwritten: 0, taken: 0, doubted: 0 };
  view.tokens.forEach((cell, position) => {
    const state = stateOf(view, position, at.look);
    const doubted = state.kind === "kept" && state.latest.value >= 0 && state.latest.value < doubt;
    counts[state.kind] = (counts[state.kind] || 0) + 1;
    counts.doubted += doubted;
    drawToken(cell, state, doubted);
  });
  counts.masked += counts.taken;
  const last = generation.looks.length;
  const look = generation.looks[at.look - 1];
  const said = at.look === 0
    ? `Before the first look: ${counts.masked} masked`
    : look.num_forwards === 0
    ? `Look ${at.look} of ${last}: this run takes no part, ` + (look.copied.length ? `${look.copied.length} put in their places, ` : "") + `${counts.masked} masked`
    : `Look ${at.look} of ${last}: ${counts.filled} filled, ` + (counts.overwritten ? `${counts.overwritten} overwritten, ` : "") +
      `${counts.taken} taken back, ${counts.masked} masked` +
      (document.body.classList.contains("unjudged") ? "" : `, ${counts.doubted} doubted`);
  byId("look").value = at.look;
  byId("look").setAttribute("aria-valuetext", said);
  byId("status").textContent = said;
  byId("play").textContent = at.timer === null ? "Play" : "Pause";
  drawTimeline(generation);
  drawRuns();
  drawDetail();
}

function drawToken(cell, state, doubted) {
  const judged = state.kind === "kept" ? state.latest.value : -1;
  const token = element("span", { class: "token", "data-state": state.kind });
  token.toggleAttribute("data-doubted", doubted);
  token.style.setProperty("--lack", judged < 0 ? 0 : 1 - judged / 1000);
  const piece = state.kind === "masked" ? "" : visible(view.generation.pieces[state.piece]);
  const text = piece.trimStart();
  token.append(text, ...gauge(judged));
  // the space before a word stays outside of what is framed or struck out
  cell.replaceChildren(piece.slice(0, piece.length - text.length), token);
  cell.toggleAttribute("data-pinned", at.pinned && at.position === state.position);
  if (state.backs) cell.dataset.backs = state.backs;
  else delete cell.dataset.backs;
  cell.setAttribute("aria-label", [place(state.position), ...facts(state).map(([name, value]) => `${name} ${value}`)].join(", "));
}

/** In a grid, quality is the length of a bar too. */
function gauge(quality) {
  if (quality < 0 || view.generation.columns === null) return [];
  return [element("span", { class: "gauge", "aria-hidden": "true" }, element("i", { style: `width: ${quality / 10}%` }))];
}

/** A line break is shown and made; a token of nothing but spaces gets a sign, or nobody would find it. */
function visible(piece) {
  if (piece.includes("\n")) return piece.replaceAll("\n", "\u21b5\n");
  return piece.trim() === "" && piece !== "" ? piece.replaceAll(" ", "\u2423").replaceAll("\t", "\u21e5") : piece;
}

function drawTimeline(generation) {
  const [width, height, top] = [byId("timeline").clientWidth - 16, byId("timeline").clientHeight, 14];
  const looks = generation.looks;
  const up = Math.max(1, ...looks.map((look) => look.filled.length));
  const down = Math.max(0, ...looks.map((look) => look.taken_back.length));
  const unit = (height - top - 4) / (up + down);
  const axis = top + up * unit;
  const step = width / Math.max(1, looks.length);
  const bar = Math.max(1, Math.min(18, step * 0.7));
  const drawn = [element("line", { class: "axis", x1: 0, x2: width, y1: axis, y2: axis })];
  looks.forEach((look, index) => {
    const x = (index + 1) * step - bar / 2;
    const later = index + 1 > at.look ? " later" : "";
    const [filled, taken] = [look.filled.length * unit, look.taken_back.length * unit];
    drawn.push(element("rect", { class: `up${later}`, x, y: axis - filled, width: bar, height: filled }));
    drawn.push(element("rect", { class: `down${later}`, x, y: axis, width: bar, height: taken }));
  });
  drawn.push(element("line", { class: "here", x1: at.look * step, x2: at.look * step, y1: top - 2, y2: height }));
  drawn.push(element("text", { x: 0, y: 9 }, down ? "filled (up) and taken back (down) at each look" : "filled at each look"));
  byId("timeline").replaceChildren(...drawn);
}

function place(position) {
  const columns = view.generation.columns;
  if (columns === null) return `token ${position + 1} of ${view.tokens.length}`;
  return `row ${Math.floor(position / columns) + 1}, column ${(position % columns) + 1}`;
}

/** What is known of a token, as pairs of a name and a value. */
function facts(state) {
  const shown = view.generation.pieces[state.piece];
  if (state.kind === "given") return [["given:", shown]];
  if (state.kind === "padding") return [["padding:", shown]];
  const known = state.kind === "masked" ? [["masked", "now"]] : [["token", shown]];
  if (state.kind === "taken") known.push(["taken back", "at this look"]);
  if (state.fill && state.fill.kind === "copied") known.push(["copied", `from another run, before look ${state.fill.look}`]);
  else if (state.fill) known.push([state.fill.kind, `at look ${state.fill.look}, confidence ${perMille(state.fill.confidence)}`]);
  if (state.first.value >= 0) known.push(["quality then", `${perMille(state.first.value)} (look ${state.first.look})`]);
  if (state.kind === "filled" || state.kind === "overwritten") known.push(["quality", "not judged before the next look"]);
  else if (state.latest.value >= 0) known.push(["quality now", `${perMille(state.latest.value)} (look ${state.latest.look})`]);
  if (state.backs) known.push(["taken back", `${times(state.backs)} so far`]);
  return known;
}

function drawDetail() {
  const detail = byId("detail");
  if (at.position === null) {
    detail.replaceChildren(element("p", { class: "where" }, "Point at a token, tap it, or move to it with the arrow keys."));
    return;
  }
  const state = stateOf(view, at.position, at.look);
  const title = state.kind === "masked" ? "masked" : view.generation.pieces[state.piece].trim() || "\u2423";
  const list = element("dl");
  for (const [name, value] of facts(state).filter(([name]) => !["token", "masked"].includes(name))) {
    list.append(...named(name, value));
  }
  const children = [element("h2", {}, title), element("p", { class: "where" }, place(state.position)), list];
  if (!state.given && !document.body.classList.contains("unjudged")) children.push(drawQuality(state.position));
  if (state.past.length) {
    children.push(element("ol", { "aria-label": "What happened to it" }, ...state.past.map((event) => element("li", {}, told(event, state.position)))));
  }
  detail.replaceChildren(...children);
}

function told(event, position) {
  const piece = event.piece === undefined || event.piece < 0 ? "" : `\u201c${visible(view.generation.pieces[event.piece])}\u201d`;
  if (event.kind === "filled") return `Look ${event.look}: ${piece} filled, confidence ${perMille(event.confidence)}`;
  const why = event.why ? `, ${event.why}` : "";
  if (event.kind === "overwritten") {
    const old = visible(view.generation.pieces[event.old]);
    return `Look ${event.look}: ${piece} in the place of \u201c${old}\u201d, confidence ${perMille(event.confidence)}${why}`;
  }
  if (event.kind === "copied") return `Before look ${event.look}: ${event.piece < 0 ? "masked" : piece}, as another run was copied or one was begun anew`;
  if (event.kind === "padded") return `Look ${event.look}: ${piece} put after the end`;
  const quality = qualityAt(view, position, event.look);
  return `Look ${event.look}: taken back${quality < 0 ? "" : `, quality ${perMille(quality)}`}${why}`;
}

/** Quality over the looks, up to now; a cross where the token was taken back. */
function drawQuality(position) {
  const [width, height, looks] = [260, 60, Math.max(1, view.generation.looks.length)];
  const chart = element("svg", { viewBox: `-22 -4 ${width + 26} ${height + 20}`, preserveAspectRatio: "xMinYMid", role: "img", "aria-label": "Quality over the looks" });
  const x = (look) => (look / looks) * width;
  const y = (quality) => height - (quality / 1000) * height;
  const doubt = y(Number(byId("doubt").value) * 1000);
  chart.append(element("line", { x1: 0, x2: width, y1: height, y2: height }), element("line", { x1: 0, x2: 0, y1: 0, y2: height }));
  chart.append(element("line", { class: "doubt", x1: 0, x2: width, y1: doubt, y2: doubt }));
  chart.append(element("text", { x: -9, y: 5, "text-anchor": "end" }, "1"), element("text", { x: -9, y: height, "text-anchor": "end" }, "0"));
  chart.append(element("text", { x: 0, y: height + 14 }, "look 0"), element("text", { x: width, y: height + 14, "text-anchor": "end" }, looks));
  let line = "";
  for (let look = 1; look <= at.look; look += 1) {
    const value = qualityAt(view, position, look);
    const taken = view.generation.looks[look - 1].taken_back.includes(position);
    if (value >= 0) {
      line += `${line.endsWith(" ") || line === "" ? "M" : "L"}${x(look)},${y(value)}`;
      if (taken) {
        const [a, b] = [x(look), y(value)];
        chart.append(element("path", { class: "cross", d: `M${a - 4},${b - 4}L${a + 4},${b + 4}M${a - 4},${b + 4}L${a + 4},${b - 4}` }));
      } else chart.append(element("circle", { cx: x(look), cy: y(value), r: 2.5 }));
    }
    if (taken || value < 0) line += line === "" || line.endsWith(" ") ? "" : " ";
  }
  chart.append(element("path", { d: line || "M0,0" }));
  return chart;
}

// ---- what the user does ------------------------------------------------------------------------------------------------

function go(look) {
  at.look = Math.min(Math.max(0, look), view.generation.looks.length);
  draw();
  remember();
}

function pause() {
  clearInterval(at.timer);
  at.timer = null;
}

function play() {
  if (at.timer !== null) pause();
  else {
    if (at.look === view.generation.looks.length) at.look = 0;
    at.timer = setInterval(() => {
      if (at.look + 1 >= view.generation.looks.length) pause();
      go(at.look + 1);
    }, PLAY_MILLISECONDS);
  }
  draw();
}

function point(position, pinned) {
  at.position = position;
  at.pinned = pinned;
  view.tokens.forEach((cell, index) => cell.toggleAttribute("data-pinned", pinned && index === position));
  drawDetail();
}

function move(event) {
  const columns = view.generation.columns || 1;
  const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, Home: -Infinity, End: Infinity };
  const from = Number(event.target.dataset.position);
  if (Number.isNaN(from) || !(event.key in steps)) return;
  event.preventDefault();
  const wanted = from + steps[event.key];
  const inside = Number.isFinite(wanted) && (wanted < 0 || wanted >= view.tokens.length) ? from : wanted;
  const to = Math.min(Math.max(0, inside), view.tokens.length - 1);
  view.tokens[to].focus();
}

/** The address says what is shown, so that it can be passed on: #generation=1&look=12&token=40, counted as the page counts. */
function remember() {
  const parts = [`look=${at.look}`];
  if (generations.length > 1) parts.unshift(`generation=${at.generation + 1}`);
  if (at.pinned) parts.push(`token=${at.position + 1}`);
  window.history.replaceState(null, "", `#${parts.join("&")}`);
}

function recall() {
  const wanted = new URLSearchParams(window.location.hash.slice(1));
  const number = (name, least, most, otherwise) => {
    const value = Number.parseInt(wanted.get(name), 10);
    return value >= least && value <= most ? value : otherwise;
  };
  show(number("generation", 1, generations.length, at.generation + 1) - 1);
  byId("which").value = at.generation;
  at.look = number("look", 0, view.generation.looks.length, view.generation.looks.length);
  const token = number("token", 1, view.tokens.length, 0);
  if (token) [at.position, at.pinned] = [token - 1, true];
  draw();
}

function listen() {
  const canvas = byId("canvas");
  const pointed = (event) => event.target.closest("[data-position]");
  canvas.addEventListener("pointerover", (event) => pointed(event) && !at.pinned && point(Number(pointed(event).dataset.position), false));
  canvas.addEventListener("focusin", (event) => {
    // one token is in the tab order, that which had the focus last
    canvas.querySelector("[tabindex='0']").tabIndex = -1;
    event.target.tabIndex = 0;
    point(Number(event.target.dataset.position), at.pinned);
  });
  canvas.addEventListener("click", (event) => {
    if (pointed(event) === null) return;
    const position = Number(pointed(event).dataset.position);
    point(position, !(at.pinned && at.position === position));
    remember();
  });
  canvas.addEventListener("keydown", (event) => {
    move(event);
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      event.target.click();
    }
  });
  const goBy = (step) => () => {
    pause();
    go(at.look + step);
  };
  byId("look").addEventListener("input", (event) => {
    pause();
    go(Number(event.target.value));
  });
  byId("first").addEventListener("click", goBy(-Infinity));
  byId("back").addEventListener("click", goBy(-1));
  byId("forth").addEventListener("click", goBy(1));
  byId("last").addEventListener("click", goBy(Infinity));
  byId("play").addEventListener("click", play);
  byId("doubt").addEventListener("input", draw);
  byId("timeline").addEventListener("click", (event) => {
    const box = byId("timeline").getBoundingClientRect();
    goBy(Math.round(((event.clientX - box.left - 8) / (box.width - 16)) * view.generation.looks.length) - at.look)();
  });
  byId("which").addEventListener("change", (event) => {
    pause();
    show(Number(event.target.value));
    go(view.generation.looks.length);
  });
  window.addEventListener("resize", () => {
    drawTimeline(view.generation);
    drawRuns();
  });
  window.addEventListener("hashchange", recall);
}

at.generation = Math.max(0, generations.findIndex((one) => one.run === null || one.run.kept));
byId("replay").hidden = false;
byId("choice").hidden = generations.length === 1;
const titled = (one) => (one.run === null ? one.name : `${one.name} \u00b7 run ${one.run.number + 1} of ${one.run.of}${one.run.kept ? ", kept" : ""}`);
byId("which").append(...generations.map((one, index) => element("option", { value: index }, titled(one))));
listen();
recall();
