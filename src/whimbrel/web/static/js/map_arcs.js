// Migrations as arcs over the map. The parcel on an arc is moved by the compositor: it costs the page no time.

import { el, svg } from "./dom.js";
import { ms, text } from "./format.js";

const STAYS_S = 6; // an arc stays for so long when its migration is over
const STEPS = 24;
const MOST_ARCS = 40;
const GOOD = new Set(["running", "done"]);

export class Arcs {
  constructor(element) {
    this.element = element;
    this.lines = svg("svg");
    this.element.append(this.lines);
    this.arcs = new Map(); // id -> {key, group, parcel, label}
    this.still = matchMedia("(prefers-reduced-motion: reduce)");
  }

  /** Shows those that run and those that are just over; returns whether some have to go soon. */
  draw(store, view, places) {
    const now_s = Date.now() / 1000;
    const shown = new Set();
    for (const move of store.migrations.values()) {
      const { record } = move;
      const over = record.outcome !== "running";
      if (over && (record.outcome === "dry-run" || now_s - move.ended_s > STAYS_S)) continue;
      if (shown.size >= MOST_ARCS) break;
      const from = places.nodes.get(text(record.source));
      const to = places.nodes.get(text(record.destination));
      if (!from || !to || from === to) continue;
      shown.add(text(record.id));
      this.show(move, curve(view, from, to));
    }
    for (const [id, arc] of this.arcs) if (!shown.has(id)) this.hide(id, arc);
    return [...shown].some((id) => store.migrations.get(id).record.outcome !== "running");
  }

  show(move, { path, points, top }) {
    const { record } = move;
    const id = text(record.id);
    const over = record.outcome !== "running";
    const words = over ? `${text(record.service)} · ${record.outcome === "done" ? `${ms(record.freeze_ms)} frozen` : text(record.outcome)}`
      : `${text(record.service)} · ${move.progress?.phase ?? "begins"}`;
    let arc = this.arcs.get(id);
    if (!arc) {
      arc = { key: "", group: svg("g", {}, svg("path")), parcel: null, label: el("span", { className: "arc-name" }) };
      this.lines.append(arc.group);
      this.element.append(arc.label);
      this.arcs.set(id, arc);
    }
    if (arc.label.textContent !== words) arc.label.textContent = words;
    arc.label.toggleAttribute("data-bad", !GOOD.has(record.outcome));
    const key = `${path} ${record.outcome}`;
    if (arc.key === key) return;
    arc.key = key;
    arc.group.setAttribute("class", over ? (record.outcome === "done" ? "move-over" : "move-over move-bad") : "");
    arc.group.firstChild.setAttribute("d", path);
    arc.label.style.left = `${top.x}px`;
    arc.label.style.top = `${top.y - 16}px`;
    arc.parcel?.remove();
    arc.parcel = over ? null : this.parcel(points);
  }

  parcel(points) {
    const made = el("span", { className: "parcel" });
    this.element.append(made);
    const stops = points.map(({ x, y }) => ({ transform: `translate(${x.toFixed(1)}px, ${y.toFixed(1)}px)` }));
    if (this.still.matches) made.style.transform = stops[STEPS / 2].transform;
    else made.animate(stops, { duration: 1400, iterations: Infinity, easing: "ease-in-out" });
    return made;
  }

  hide(id, arc) {
    arc.group.remove();
    arc.label.remove();
    arc.parcel?.remove();
    this.arcs.delete(id);
  }
}

/** From server to server, bent upwards. */
function curve(view, from, to) {
  const x0 = view.px(from.x);
  const y0 = view.py(from.y) - (from.known ? 24 : 0);
  const x1 = view.px(to.x);
  const y1 = view.py(to.y) - (to.known ? 24 : 0);
  const apart = Math.hypot(x1 - x0, y1 - y0);
  const cx = (x0 + x1) / 2;
  const cy = Math.max(14, (y0 + y1) / 2 - Math.min(150, apart * 0.42));
  const points = [];
  for (let i = 0; i <= STEPS; i += 1) {
    const t = i / STEPS;
    const u = 1 - t;
    points.push({ x: u * u * x0 + 2 * u * t * cx + t * t * x1, y: u * u * y0 + 2 * u * t * cy + t * t * y1 });
  }
  const d = `M${x0.toFixed(1)} ${y0.toFixed(1)}Q${cx.toFixed(1)} ${cy.toFixed(1)} ${x1.toFixed(1)} ${y1.toFixed(1)}`;
  return { path: d, points, top: points[STEPS / 2] };
}
