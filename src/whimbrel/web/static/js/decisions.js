// What the planner decided, and why.

import { byId, el } from "./dom.js";
import { clock, ms, num, text } from "./format.js";

const TONES = { done: "good", running: "move", failed: "bad" };
const SHOWN = 40;

export class Decisions {
  constructor(store) {
    this.store = store;
    this.list = byId("decisions");
    this.visible = false;
    store.frames.on(["decisions"], () => this.draw());
  }

  show(visible) {
    this.visible = visible;
    if (visible) this.draw();
  }

  draw() {
    byId("decisions-empty").hidden = this.store.decisions.length > 0;
    if (this.visible) this.list.replaceChildren(...this.store.decisions.slice(0, SHOWN).map(row));
  }
}

function row(one) {
  const ways = [way("radio", one.from_base_station, one.base_station), way("service", one.from_server, one.server)];
  // the error that is told is that of the migration's prediction, not of the whole interruption
  const off = num(one.prediction_error) === null ? "" : ` (off by ${(one.prediction_error * 100).toFixed(0)} %)`;
  const outcome = [figures("Migration", one, "migration_ms", off), figures("Interruption", one, "interruption_ms", "")].filter(Boolean).join(" ");
  return el("li", {},
    el("time", {}, clock(one.made_unix_s)),
    el("p", { className: "who" }, text(one.user), " ", el("span", {}, ways.filter(Boolean).join(" · "))),
    el("span", {}, el("span", { className: "chip", "data-tone": TONES[one.state] }, text(one.state))),
    el("p", { className: "why" }, [text(one.reason), outcome, text(one.error)].filter(Boolean).join(" — ")));
}

const way = (what, from, to) => (from === to || !to ? "" : `${what} ${text(from) || "none"} → ${text(to)}`);
const figures = (what, { predicted, measured }, field, off) => {
  const times = [time("predicted", predicted?.[field]), time("measured", measured?.[field])].filter(Boolean);
  return times.length ? `${what} ${times.join(", ")}${off}.` : "";
};
const time = (what, value) => (num(value) ? `${what} ${ms(value)}` : "");
