// The user that was chosen: what it is, its delay and its signal.

import { byId, el, say } from "./dom.js";
import { Chart, fromZero, tens } from "./charts.js";
import { clock, coordinates, DASH, ms } from "./format.js";

const MOST_OFFERED = 200;
const DRAWN_EVERY_MS = 1000; // figures that change faster cannot be read, and a chart of two minutes hardly moves

export class UserPanel {
  constructor(store, theme) {
    this.store = store;
    this.theme = theme;
    this.delay = new Chart(byId("chart-delay"), { series: "delay_ms", color: "accent", range: fromZero });
    this.signal = new Chart(byId("chart-rssi"), { series: "rssi_dbm", color: "node", range: tens });
    this.pairs = new Map();
    this.find = byId("find-user");
    this.find.addEventListener("input", () => this.choose(false));
    this.find.addEventListener("change", () => this.choose(true));
    this.find.addEventListener("focus", () => this.offer());
    store.frames.on(["users", "selection", "theme", "migrations"], () => this.draw(), { least_ms: DRAWN_EVERY_MS });
  }

  /** A whole name is enough; Enter takes the first that begins so. */
  choose(entered) {
    const wanted = this.find.value.trim();
    const { users } = this.store;
    let name = users.has(wanted) ? wanted : "";
    if (!name && entered && wanted) name = [...users.keys()].find((one) => one.startsWith(wanted)) ?? "";
    if (name) this.store.select({ user: name });
    else if (!wanted) this.store.select({ user: "" });
  }

  offer() {
    const names = [...this.store.users.keys()].slice(0, MOST_OFFERED);
    byId("user-names").replaceChildren(...names.map((name) => el("option", { value: name })));
  }

  draw() {
    // with one user there is nothing to choose
    if (!this.store.selected.user && this.store.users.size === 1) this.store.selected.user = [...this.store.users.keys()][0];
    const user = this.store.users.get(this.store.selected.user);
    byId("user-body").hidden = !user;
    byId("user-empty").hidden = Boolean(user);
    say(byId("user-title"), user ? user.name : "User");
    say(byId("user-aside"), user ? user.state || DASH : "");
    if (!user) return;
    const service = this.store.services.find((one) => one.name === user.service);
    this.pair("base station", user.serving || "none");
    this.pair("service", user.service || "none");
    this.pair("runs on", service?.node || DASH);
    this.pair("place", coordinates(user.x_m, user.y_m) || DASH);
    this.pair("last report", clock(user.seen_unix_s));
    say(byId("delay-now"), ms(user.delay_ms));
    say(byId("rssi-now"), user.rssi_dbm === null ? DASH : `${user.rssi_dbm.toFixed(0)} dBm`);
    const marks = [];
    for (const { record, begun_s } of this.store.migrations.values()) if (user.service && record.service === user.service) marks.push(begun_s + (record.total_ms || 0) / 1000);
    this.delay.draw(user.track, marks, this.theme);
    this.signal.draw(user.track, marks, this.theme);
  }

  pair(name, value) {
    let cell = this.pairs.get(name);
    if (!cell) {
      cell = el("dd");
      this.pairs.set(name, cell);
      byId("user-facts").append(el("div", {}, el("dt", {}, name), cell));
    }
    say(cell, value);
  }
}
