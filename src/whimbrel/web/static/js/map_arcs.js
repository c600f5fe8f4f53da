// Migrations as arcs over the map: which there are, and their names. The lines and what moves on them are drawn by a
// worker (`map_arcs_worker.js`), so that a smooth arc costs the page no time.

import { el } from "./dom.js";
import { ms, text } from "./format.js";
import { free } from "./map_layout.js";

const STAYS_S = 6; // an arc stays for so long when its migration is over
const MOST_ARCS = 40;
const GOOD = new Set(["running", "done"]);

export class Arcs {
  constructor(element, canvas) {
    this.element = element;
    this.labels = new Map(); // id -> element
    this.told = "";
    this.worker = new Worker(new URL("./map_arcs_worker.js", import.meta.url), { type: "module" });
    const offscreen = canvas.transferControlToOffscreen();
    this.worker.postMessage({ canvas: offscreen }, [offscreen]);
    const still = matchMedia("(prefers-reduced-motion: reduce)");
    const tell = () => this.worker.postMessage({ still: still.matches });
    still.addEventListener("change", tell);
    tell();
  }

  resize(width, height, ratio) {
    this.worker.postMessage({ size: { width, height, ratio } });
  }

  color({ move, bad, surface }) {
    this.worker.postMessage({ colors: { move, bad, surface } });
  }

  /** Shows those that run and those that are just over; returns whether some have to go soon. */
  draw(store, view, places, boxes) {
    const now_s = Date.now() / 1000;
    this.taken = [...boxes];
    const shown = new Map();
    let leaving = false;
    const running = (move) => Number(move.record.outcome === "running");
    for (const move of [...store.migrations.values()].sort((a, b) => running(b) - running(a))) {
      const { record } = move;
      const over = record.outcome !== "running";
      if (over && (record.outcome === "dry-run" || now_s - move.ended_s > STAYS_S)) continue;
      if (shown.size >= MOST_ARCS) break;
      const from = places.nodes.get(text(record.source));
      const to = places.nodes.get(text(record.destination));
      if (!from || !to || from === to) continue;
      const arc = { ...curve(view, from, to), running: !over, good: GOOD.has(record.outcome), shift_ms: (shown.size * 370) % 1400 };
      shown.set(text(record.id), arc);
      this.label(move, arc, view);
      leaving ||= over;
    }
    for (const [id, label] of this.labels) {
      if (shown.has(id)) continue;
      label.remove();
      this.labels.delete(id);
    }
    const arcs = [...shown.values()];
    const told = JSON.stringify(arcs);
    if (told !== this.told) this.worker.postMessage({ arcs });
    this.told = told;
    return leaving;
  }

  label({ record, progress }, arc, view) {
    const id = text(record.id);
    let label = this.labels.get(id);
    if (!label) {
      label = el("span", { className: "arc-name" });
      this.element.append(label);
      this.labels.set(id, label);
    }
    const what = arc.running ? (progress?.phase ?? "begins") : record.outcome === "done" ? `${ms(record.freeze_ms)} frozen` : text(record.outcome);
    const words = `${text(record.service)} · ${what}`;
    if (label.textContent !== words) label.textContent = words;
    label.toggleAttribute("data-bad", !arc.good);
    const spot = spotFor(arc, words, this.taken, view);
    if (label.hidden !== !spot) label.hidden = !spot; // no room: rather no name than two over each other
    if (!spot) return;
    this.taken.push(boxOf(spot, halfOf(words)));
    const left = `${spot.x.toFixed(0)}px`;
    const top = `${spot.y.toFixed(0)}px`;
    if (label.style.left !== left) label.style.left = left;
    if (label.style.top !== top) label.style.top = top;
  }
}

/** From server to server. */
function curve(view, from, to) {
  const x0 = view.px(from.x);
  const y0 = view.py(from.y) - (from.known ? 24 : 0);
  const x1 = view.px(to.x);
  const y1 = view.py(to.y) - (to.known ? 24 : 0);
  const apart = Math.hypot(x1 - x0, y1 - y0);
  // bent across the way: upwards, and sideways where the way itself goes up or down
  const bend = Math.min(150, apart * 0.42) / (apart || 1);
  const side = x1 >= x0 ? 1 : -1;
  const cx = (x0 + x1) / 2 + Math.abs(y1 - y0) * bend * (Math.sign((y1 - y0) * side) || 0);
  const cy = Math.max(14, (y0 + y1) / 2 - Math.abs(x1 - x0) * bend);
  return { x0, y0, cx, cy, x1, y1 };
}

const LETTER = 6.8; // px, about
const HIGH = 22;
const halfOf = (words) => Math.min(256, words.length * LETTER + 16) / 2;

const boxOf = ({ x, y }, half) => ({ x0: x - half, x1: x + half, y0: y - HIGH / 2, y1: y + HIGH / 2 });

/** The middle of an arc's name: near the arc's own middle, within the map, where it covers no other name; in a crowd it may
 * cover a base station's (`soft`). null: there is no room. */
export function spotFor(arc, words, taken, view) {
  const half = halfOf(words);
  const along = (t) => {
    const u = 1 - t;
    return { x: u * u * arc.x0 + 2 * u * t * arc.cx + t * t * arc.x1, y: u * u * arc.y0 + 2 * u * t * arc.cy + t * t * arc.y1 };
  };
  const inside = (value, room, margin) => Math.max(margin, Math.min(room - margin, value));
  for (const others of [taken, taken.filter((box) => !box.soft)]) {
    for (const away of [-16, 16, -40, 40, -64, 64]) {
      for (const t of [0.5, 0.4, 0.6, 0.3, 0.7]) {
        const at = along(t);
        const spot = { x: inside(at.x, view.width, half + 4), y: inside(at.y + away, view.height, HIGH / 2 + 4) };
        if (free(boxOf(spot, half), others)) return spot;
      }
    }
  }
  return null;
}
