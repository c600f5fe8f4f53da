// Migrations as arcs over the map: which there are, and their names. The lines and what moves on them are drawn by a
// worker (`map_arcs_worker.js`), so that a smooth arc costs the page no time.

import { el } from "./dom.js";
import { ms, text } from "./format.js";

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
  draw(store, view, places) {
    const now_s = Date.now() / 1000;
    const shown = new Map();
    let leaving = false;
    for (const move of store.migrations.values()) {
      const { record } = move;
      const over = record.outcome !== "running";
      if (over && (record.outcome === "dry-run" || now_s - move.ended_s > STAYS_S)) continue;
      if (shown.size >= MOST_ARCS) break;
      const from = places.nodes.get(text(record.source));
      const to = places.nodes.get(text(record.destination));
      if (!from || !to || from === to) continue;
      const arc = { ...curve(view, from, to), running: !over, good: GOOD.has(record.outcome), shift_ms: (shown.size * 370) % 1400 };
      shown.set(text(record.id), arc);
      this.label(move, arc);
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

  label({ record, progress }, arc) {
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
    const left = `${((arc.x0 + 2 * arc.cx + arc.x1) / 4).toFixed(0)}px`;
    const top = `${((arc.y0 + 2 * arc.cy + arc.y1) / 4 - 16).toFixed(0)}px`;
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
