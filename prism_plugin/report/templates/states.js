// What the data say about a position after some looks.

/** Events of each position, in order: {look, kind: "filled" | "overwritten" | "taken" | "padded" | "copied", piece, old, confidence, why}. Looks count from 1. */
function eventsOf(generation) {
  const events = generation.start.map(() => []);
  generation.looks.forEach((look, index) => {
    const number = index + 1;
    for (const [position, piece] of look.copied) events[position].push({ look: number, kind: "copied", piece });
    for (const [position, piece, confidence] of look.filled) events[position].push({ look: number, kind: "filled", piece, confidence });
    const why = new Map(look.why);
    for (const [position, piece, old, confidence] of look.overwritten) {
      events[position].push({ look: number, kind: "overwritten", piece, old, confidence, why: why.get(position) });
    }
    for (const position of look.taken_back) events[position].push({ look: number, kind: "taken", why: why.get(position) });
    for (const [position, piece] of look.padded) events[position].push({ look: number, kind: "padded", piece });
  });
  return events;
}

/** A generation, with what is found of it once. */
function viewOf(generation) {
  return { generation, column: new Map(generation.editable.map((position, index) => [position, index])), events: eventsOf(generation) };
}

/** Quality that a look gave to a position, per mille; -1 where it saw a mask or did not judge. */
function qualityAt(view, position, look) {
  const column = view.column.get(position);
  const quality = look < 1 ? null : view.generation.looks[look - 1].quality;
  return quality === null || column === undefined ? -1 : quality[column];
}

/** All that is known of a position after `look` looks. */
function stateOf(view, position, look) {
  const past = view.events[position].filter((event) => event.look <= look);
  const last = past[past.length - 1];
  const state = { position, past, given: !view.column.has(position), piece: view.generation.start[position] };
  state.backs = past.filter((event) => event.kind === "taken").length;
  state.first = state.latest = { look: 0, value: -1 };
  if (state.given) return { ...state, kind: "given" };
  if (last === undefined) return { ...state, kind: "masked" };
  if (last.kind === "taken") {
    if (last.look !== look) return { ...state, kind: "masked" };
    const fill = past.filter((event) => ["filled", "overwritten", "copied"].includes(event.kind)).pop();
    return { ...state, kind: "taken", piece: fill.piece, fill, latest: { look, value: qualityAt(view, position, look) } };
  }
  if (last.kind === "copied" && last.piece < 0) return { ...state, kind: "masked" };
  state.piece = last.piece;
  if (last.kind === "padded") return { ...state, kind: "padding" };
  for (let number = last.look + 1; number <= look; number += 1) {
    const value = qualityAt(view, position, number);
    if (value < 0) continue;
    if (state.first.value < 0) state.first = { look: number, value };
    state.latest = { look: number, value };
  }
  return { ...state, fill: last, kind: last.look === look && last.kind !== "copied" ? last.kind : "kept" };
}
