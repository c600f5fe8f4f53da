// The nodes' resources.

import { byId, el, say } from "./dom.js";
import { bytes, DASH, rate } from "./format.js";

export class Nodes {
  constructor(store) {
    this.store = store;
    this.body = byId("nodes");
    this.rows = new Map();
    this.visible = false;
    store.frames.on(["nodes", "services"], () => this.draw());
  }

  show(visible) {
    this.visible = visible;
    if (visible) this.draw();
  }

  draw() {
    if (!this.visible) return;
    const names = new Set(this.store.nodes.map((one) => one.name));
    for (const [name, row] of this.rows) {
      if (names.has(name)) continue;
      row.line.remove();
      this.rows.delete(name);
    }
    for (const node of this.store.nodes) {
      let row = this.rows.get(node.name);
      if (!row) {
        row = makeRow(node);
        this.rows.set(node.name, row);
        this.body.append(row.line);
      }
      say(row.state, node.up ? "up" : "down");
      row.state.dataset.tone = node.up ? "good" : "bad";
      row.state.title = node.error;
      row.cpu(node.cpu_percent === null ? null : node.cpu_percent / 100, node.cpu_percent === null ? DASH : `${node.cpu_percent.toFixed(0)} %`);
      row.memory(share(node.memory_used_bytes, node.memory_total_bytes), of(node.memory_used_bytes, node.memory_total_bytes));
      row.disk(share(node.disk_used_bytes, node.disk_total_bytes), of(node.disk_used_bytes, node.disk_total_bytes));
      say(row.inwards, rate(node.bps_in));
      say(row.outwards, rate(node.bps_out));
      say(row.services, node.role === "gateway" ? "gateway" : node.error || node.services.join(", ") || "none");
    }
  }
}

const share = (used, total) => (used === null || !total ? null : used / total);
const of = (used, total) => (used === null || !total ? DASH : `${bytes(used)} of ${bytes(total)}`);

function meter() {
  const fill = el("span", { className: "fill" });
  const words = el("span");
  const made = el("div", { className: "meter" }, words, el("div", { className: "rail" }, fill));
  return [made, (part, text) => {
    say(words, text);
    fill.style.transform = `scaleX(${Math.min(1, Math.max(0, part ?? 0)).toFixed(3)})`;
    made.toggleAttribute("data-full", (part ?? 0) > 0.85);
  }];
}

function makeRow(node) {
  const state = el("span", { className: "chip" });
  const [cpuMeter, cpu] = meter();
  const [memoryMeter, memory] = meter();
  const [diskMeter, disk] = meter();
  const inwards = el("td", { className: "number" });
  const outwards = el("td", { className: "number" });
  const services = el("td", { className: "soft" });
  const line = el("tr", {}, el("th", { scope: "row" }, node.name), el("td", {}, state), el("td", {}, cpuMeter), el("td", {}, memoryMeter),
    el("td", {}, diskMeter), inwards, outwards, services);
  return { line, state, cpu, memory, disk, inwards, outwards, services };
}
