// A migration's phases, from prepare to finish: one bar for the whole, and below it the moment in which the service
// stood still, drawn larger, with the commit marked. Before that line everything can be undone.

import { el, svg } from "./dom.js";
import { ms, num, text } from "./format.js";

const KNOWN = new Set(["preflight", "prepare", "rounds", "freeze", "switch", "finish"]);
const WIDTH = 1000; // of the drawing; it is stretched to its place

const phasesOf = (record) =>
  (Array.isArray(record.phases) ? record.phases : [])
    .map((one) => ({ name: text(one.name), start_ms: num(one.start_ms) ?? 0, duration_ms: num(one.duration_ms) ?? 0 }))
    .filter((one) => one.duration_ms >= 0);

export const phaseClass = (name) => `phase-${KNOWN.has(name) ? name : "other"}`;

/** Parts of the freeze: "freeze.dump", but not "freeze.restore.files", which is a part of a part. */
const partsOf = (phases) => phases.filter((one) => one.name.startsWith("freeze.") && one.name.indexOf(".", 7) < 0);

/** When it could no longer be undone: when both nodes had agreed, which newer records tell. */
function commitOf(phases) {
  const told = phases.find((one) => one.name.startsWith("freeze.restore.resume")) ?? phases.find((one) => one.name === "switch");
  return told?.start_ms ?? null;
}

/** The whole timeline of a record; null when it has no phases. */
export function timeline(record) {
  const all = phasesOf(record).sort((a, b) => a.start_ms - b.start_ms);
  const phases = all.filter((one) => !one.name.includes("."));
  if (!phases.length) return null;
  const end_ms = Math.max(num(record.total_ms) ?? 0, ...phases.map((one) => one.start_ms + one.duration_ms), 1);
  const parts = [bar("from request to finish", ms(end_ms), phases, 0, end_ms)];
  const freeze = phases.find((one) => one.name === "freeze");
  const inside = partsOf(all);
  if (freeze) {
    const next = phases.find((one) => one.name === "switch");
    const until_ms = next ? next.start_ms + next.duration_ms : freeze.start_ms + freeze.duration_ms;
    const around = Math.max(1, (until_ms - freeze.start_ms) * 0.08);
    const from_ms = Math.max(0, freeze.start_ms - around);
    const to_ms = Math.min(end_ms, until_ms + around);
    parts.push(
      pointer(from_ms / end_ms, to_ms / end_ms),
      bar("around the freeze; the line is the commit", ms(to_ms - from_ms), phases, from_ms, to_ms, inside, commitOf(all)),
    );
  }
  parts.push(legend(phases));
  if (freeze && num(record.freeze_ms)) {
    // two figures with a like name: what the service stood still, and the phase around that
    const steps = inside.map((one) => `${one.name.slice(7)} ${ms(one.duration_ms)}`).join(", ");
    parts.push(el("p", { className: "freeze-words" }, `Frozen ${ms(record.freeze_ms)}: from the service's last instruction at the source to its first at the destination. ` +
      `The phase “freeze” around it took ${ms(freeze.duration_ms)}${steps ? `: ${steps}` : ""}.`));
  }
  return el("div", { className: "timeline" }, ...parts);
}

/** Phases side by side, and the parts of the freeze in a thinner row below. */
function bar(title, total, phases, from_ms, to_ms, inside = [], commit_ms = null) {
  const height = inside.length ? 30 : 22;
  const drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${height}`, preserveAspectRatio: "none", role: "img",
    "aria-label": `${title}: ${phases.map((one) => `${one.name} ${ms(one.duration_ms)}`).join(", ")}` });
  drawing.style.height = `${height}px`;
  const x = (at_ms) => ((Math.min(to_ms, Math.max(from_ms, at_ms)) - from_ms) / (to_ms - from_ms)) * WIDTH;
  const block = (one, y, high, kind, least) => {
    const left = x(one.start_ms);
    const right = x(one.start_ms + one.duration_ms);
    if (right <= left && (one.start_ms + one.duration_ms <= from_ms || one.start_ms >= to_ms)) return;
    const shape = svg("rect", { x: left.toFixed(2), y, width: Math.max(least, right - left - 1.5).toFixed(2), height: high, class: kind });
    shape.append(svg("title", {}, `${one.name} ${ms(one.duration_ms)}`));
    drawing.append(shape);
  };
  for (const one of phases) block(one, 3, 16, phaseClass(one.name), one.name === "freeze" ? 6 : 1.5);
  inside.forEach((one, place) => block(one, 21, 8, place % 2 ? "part-odd" : "part-even", 1.5));
  if (commit_ms !== null) {
    drawing.append(svg("line", { x1: x(commit_ms), x2: x(commit_ms), y1: 0, y2: height, class: "commit-line", "vector-effect": "non-scaling-stroke" }));
  }
  return el("div", {}, el("div", { className: "title" }, el("span", {}, title), el("span", {}, total)), drawing);
}

/** Two lines from the part of the upper bar to the whole of the lower one. */
function pointer(from, to) {
  const drawing = svg("svg", { viewBox: `0 0 ${WIDTH} 12`, preserveAspectRatio: "none", "aria-hidden": "true" });
  drawing.style.height = "10px";
  drawing.append(svg("path", { d: `M${from * WIDTH} 0L0 12M${to * WIDTH} 0L${WIDTH} 12`, class: "zoom-lines", "vector-effect": "non-scaling-stroke" }));
  return drawing;
}

function legend(phases) {
  const sums = new Map();
  for (const one of phases) sums.set(one.name, (sums.get(one.name) ?? 0) + one.duration_ms);
  return el("ul", { className: "phases" }, ...[...sums].map(([name, sum]) =>
    el("li", {}, el("span", { className: `swatch ${phaseClass(name)}` }), name, el("b", {}, ms(sum)))));
}
