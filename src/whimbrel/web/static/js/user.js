// The user that was chosen: what it is, its delay and its signal.

import { byId, el, say } from "./dom.js";
import { api } from "./api.js";
import { Chart, fromZero, tens } from "./charts.js";
import { clock, coordinates, DASH, ms, num } from "./format.js";

const MOST_OFFERED = 200;
const DRAWN_EVERY_MS = 1000; // figures that change faster cannot be read, and a chart of two minutes hardly moves

export class UserPanel {
  constructor(store, theme) {
    this.store = store;
    this.theme = theme;
    const resized = () => { // also when they are first shown: they have had no size until then
      store.touch("selection");
      store.frames.soon();
    };
    this.delay = new Chart(byId("chart-delay"), { series: "delay_ms", color: "accent", range: fromZero, resized });
    this.signal = new Chart(byId("chart-rssi"), { series: "rssi_dbm", color: "node", range: tens, resized });
    this.pairs = new Map();
    this.recalled = new WeakSet(); // users whose samples of before were asked for
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
    if (!this.store.selected.user && this.store.users.size === 1) this.store.select({ user: [...this.store.users.keys()][0] });
    const user = this.store.users.get(this.store.selected.user);
    byId("user-body").hidden = !user;
    byId("user-empty").hidden = Boolean(user);
    say(byId("user-title"), user ? user.name : "User");
    say(byId("user-aside"), user ? user.state || DASH : "");
    if (!user) return;
    this.recall(user);
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

  /** What the charts would show if the page had been open, asked for once for each user. */
  recall(user) {
    if (this.recalled.has(user)) return;
    this.recalled.add(user);
    api.samples(user.name).then(({ samples }) => {
      if (!Array.isArray(samples)) return;
      user.track.before(samples.filter(Array.isArray).map((one) => [0, 1, 2].map((i) => num(one[i]))).filter(([t_s]) => t_s !== null));
      this.store.touch("selection");
      this.store.frames.soon();
    }, () => {}); // an extra: the charts begin now
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
