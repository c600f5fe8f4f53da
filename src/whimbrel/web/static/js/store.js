// All that the page knows, in one place. The feed writes it, the views read it; a topic is touched with every change.

import { num, text } from "./format.js";
import { Track } from "./tracks.js";

export const MOST_MIGRATIONS = 60;
export const MOST_DECISIONS = 60;
export const MOST_LINES = 500;

const list = (value) => (Array.isArray(value) ? value.filter((one) => one && typeof one === "object") : []);

/** A user, with numbers that are numbers. */
class User {
  constructor(name) {
    this.name = name;
    this.track = new Track();
    this.x_m = null;
    this.y_m = null;
    this.serving = "";
    this.state = "";
    this.rssi_dbm = null;
    this.delay_ms = null;
    this.application = "";
    this.service = "";
    this.seen_unix_s = 0;
  }

  take(told, now_s) {
    this.x_m = num(told.x_m);
    this.y_m = num(told.y_m);
    this.serving = text(told.serving);
    this.state = text(told.state);
    this.rssi_dbm = num(told.rssi_dbm);
    this.delay_ms = num(told.delay_ms);
    this.application = text(told.application);
    this.service = text(told.service);
    this.seen_unix_s = num(told.seen_unix_s) ?? 0;
    if (this.x_m !== null && this.y_m !== null) this.track.go(this.x_m, this.y_m);
    this.track.sample(now_s, this.delay_ms, this.rssi_dbm);
  }
}

export class Store {
  constructor(frames) {
    this.frames = frames;
    this.link = { state: "connecting", text: "connecting" };
    this.nodes = [];
    this.stations = [];
    this.users = new Map();
    this.services = [];
    this.migrations = new Map(); // id -> {record, progress, begun_s, ended_s}
    this.decisions = [];
    this.log = [];
    this.lines = 0; // ever logged
    this.settings = { planner: "", strategies: [], version: "" };
    this.selected = { user: "", migration: "" };
    this.known = false;
  }

  touch(...topics) {
    this.frames.touch(topics);
  }

  setLink(state, words) {
    this.link = { state, text: words };
    this.touch("link");
  }

  setRegion(told) {
    this.known = true;
    this.setNodes(told.nodes);
    this.stations = list(told.base_stations).map((one) => ({
      name: text(one.name),
      gateway: text(one.gateway),
      zone: text(one.zone),
      x_m: num(one.x_m),
      y_m: num(one.y_m),
      reach_m: num(one.reach_m),
    }));
    const names = new Set(list(told.users).map((one) => text(one.name)));
    for (const name of this.users.keys()) if (!names.has(name)) this.users.delete(name);
    for (const [name, points] of Object.entries(told.ways ?? {})) if (!this.users.has(name)) this.begin(name, points);
    this.takeUsers(told.users);
    for (const name of this.users.keys()) if (!names.has(name)) this.users.delete(name);
    this.setServices(told.services);
    const running = new Set(list(told.migrations).map((one) => text(one.id)));
    for (const [id, move] of this.migrations) {
      // what ended while we were away is asked for again
      if (move.record.outcome === "running" && !running.has(id)) this.migrations.delete(id);
    }
    for (const record of list(told.migrations)) this.takeRecord(record);
    this.decisions = list(told.decisions).slice(0, MOST_DECISIONS);
    const settings = told.settings ?? {};
    this.settings = {
      planner: text(settings.planner),
      strategies: Array.isArray(settings.strategies) ? settings.strategies.map(text) : [],
      version: text(settings.version),
    };
    if (this.selected.user && !this.users.has(this.selected.user)) this.selected.user = "";
    this.touch("region", "nodes", "users", "who", "services", "migrations", "decisions", "selection");
  }

  /** A user that was there before the page: it came by this way. */
  begin(name, points) {
    const user = new User(name);
    for (const point of Array.isArray(points) ? points : []) {
      const [x_m, y_m] = Array.isArray(point) ? point.map(num) : [null, null];
      if (x_m !== null && y_m !== null) user.track.go(x_m, y_m);
    }
    this.users.set(name, user);
  }

  setNodes(told) {
    this.nodes = list(told).map((one) => ({
      name: text(one.name),
      role: text(one.role),
      tier: text(one.tier),
      up: one.up === true,
      error: text(one.error),
      x_m: num(one.x_m),
      y_m: num(one.y_m),
      services: Array.isArray(one.services) ? one.services.map(text) : [],
      cpu_percent: num(one.cpu_percent),
      memory_used_bytes: num(one.memory_used_bytes),
      memory_total_bytes: num(one.memory_total_bytes),
      disk_used_bytes: num(one.disk_used_bytes),
      disk_total_bytes: num(one.disk_total_bytes),
      bps_in: num(one.bps_in),
      bps_out: num(one.bps_out),
    }));
    this.touch("nodes");
  }

  setServices(told) {
    this.services = list(told).map((one) => ({
      name: text(one.name),
      node: text(one.node),
      address: text(one.address),
      workload: text(one.workload),
      state: text(one.state),
      engine: text(one.engine),
      image: text(one.image),
    }));
    this.touch("services");
  }

  takeUsers(told) {
    const now_s = Date.now() / 1000;
    let came = false;
    for (const one of list(told)) {
      const name = text(one.name);
      let user = this.users.get(name);
      if (!user) {
        user = new User(name);
        this.users.set(name, user);
        came = true;
      }
      user.take(one, now_s);
    }
    this.touch("users", ...(came ? ["who"] : []));
  }

  dropUsers(names) {
    for (const name of Array.isArray(names) ? names : []) {
      this.users.delete(text(name));
      if (this.selected.user === name) this.selected.user = "";
    }
    this.touch("users", "who", "selection");
  }

  /** A migration's record, of one that runs or is over. */
  takeRecord(record) {
    const id = text(record.id);
    if (!id) return;
    const over = record.outcome !== "running";
    const known = this.migrations.get(id);
    const begun_s = num(record.started_unix_s) || known?.begun_s || Date.now() / 1000;
    const ended_now = over && known?.record.outcome === "running";
    if (ended_now && record.outcome === "done") this.moved(text(record.service), text(record.destination));
    this.migrations.set(id, {
      record,
      progress: over ? null : (known?.progress ?? null),
      begun_s,
      ended_s: ended_now ? Date.now() / 1000 : (known?.ended_s ?? 0),
    });
    if (this.migrations.size > MOST_MIGRATIONS) {
      const oldest = this.newest().at(-1);
      this.migrations.delete(text(oldest.record.id));
    }
    this.touch("migrations");
  }

  /** The list of services comes every two seconds; where this one is now is known. */
  moved(name, node) {
    const service = this.services.find((one) => one.name === name);
    if (service) service.node = node;
    this.touch("services");
  }

  takeProgress(id, progress) {
    const move = this.migrations.get(text(id));
    if (!move || !progress || move.record.outcome !== "running") return;
    move.progress = { phase: text(progress.phase), detail: text(progress.detail), fraction: num(progress.fraction) ?? -1 };
    this.touch("progress");
  }

  /** All migrations that are known, the newest first. */
  newest() {
    return [...this.migrations.values()].sort((a, b) => b.begun_s - a.begun_s);
  }

  running() {
    return [...this.migrations.values()].filter((move) => move.record.outcome === "running");
  }

  takeDecision(decision) {
    const others = this.decisions.filter((one) => one.id !== decision.id);
    this.decisions = [decision, ...others].slice(0, MOST_DECISIONS);
    this.touch("decisions");
  }

  takeLine(line) {
    if (this.has(line)) return;
    this.log.push(line);
    this.lines += 1;
    if (this.log.length > MOST_LINES) this.log.splice(0, this.log.length - MOST_LINES);
    this.touch("log");
  }

  /** Lines of before, in any order: those that are not there yet, each at its place. */
  takeLines(lines) {
    const fresh = list(lines).filter((line) => !this.has(line));
    if (!fresh.length) return;
    const all = [...this.log, ...fresh].sort((a, b) => (num(a.id) ?? 0) - (num(b.id) ?? 0));
    this.log = all.slice(-MOST_LINES);
    this.lines += fresh.length;
    this.touch("history");
  }

  /** The same line comes again after a loss: the stream tells what it told before. Few are looked at, the newest. */
  has({ id }) {
    const number = num(id);
    if (number === null) return false;
    for (let i = this.log.length - 1; i >= 0; i -= 1) {
      const there = num(this.log[i].id);
      if (there === number) return true;
      if (there !== null && there < number) return false; // they are in order
    }
    return false;
  }

  select(what) {
    Object.assign(this.selected, what);
    this.touch("selection");
    this.frames.soon();
  }
}
