// Services and what can be done with them. A row is kept as long as its service: focus stays where it is.

import { byId, el, say } from "./dom.js";
import { DASH } from "./format.js";

const TONES = { running: "good", migrating: "move", starting: "move", stopped: "bad" };
const MOST_ROWS = 300;

export class Services {
  constructor(store, dialogs) {
    this.store = store;
    this.dialogs = dialogs;
    this.body = byId("services");
    this.rows = new Map();
    this.visible = false;
    store.frames.on(["services", "migrations"], () => this.draw());
  }

  show(visible) {
    this.visible = visible;
    if (visible) this.draw();
  }

  draw() {
    byId("services-empty").hidden = this.store.services.length > 0;
    if (!this.visible) return;
    const shown = this.store.services.slice(0, MOST_ROWS);
    const names = new Set(shown.map((one) => one.name));
    for (const [name, row] of this.rows) {
      if (!names.has(name)) {
        row.line.remove();
        this.rows.delete(name);
      }
    }
    const moving = new Set(this.store.running().map((move) => move.record.service));
    for (const service of shown) {
      let row = this.rows.get(service.name);
      if (!row) {
        row = this.row(service.name);
        this.rows.set(service.name, row);
        this.body.append(row.line);
      }
      const state = moving.has(service.name) ? "migrating" : service.state;
      say(row.state, state || DASH);
      row.state.dataset.tone = TONES[state] ?? "";
      say(row.node, service.node);
      say(row.address, service.address);
      say(row.image, service.workload || service.image);
      row.migrate.disabled = row.remove.disabled = moving.has(service.name);
    }
  }

  row(name) {
    const state = el("span", { className: "chip" });
    const node = el("td");
    const address = el("td", { className: "soft" });
    const image = el("td", { className: "soft" });
    const migrate = el("button", { type: "button", className: "small acts", "aria-label": `Migrate ${name}`, onclick: () => this.dialogs.migrate(name) }, "Migrate");
    const remove = el("button", { type: "button", className: "small acts", "aria-label": `Remove ${name}`, onclick: () => this.dialogs.remove(name) }, "Remove");
    const line = el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, state), node, address, image, el("td", { className: "row-actions" }, migrate, remove));
    return { line, state, node, address, image, migrate, remove };
  }
}
