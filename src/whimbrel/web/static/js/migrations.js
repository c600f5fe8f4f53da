// Migrations: the running ones with their phase, the others with what they cost. One is open, with its timeline.

import { byId, el, say } from "./dom.js";
import { bytes, clock, DASH, ms, num, text, whole } from "./format.js";
import { timeline } from "./timeline.js";

const SHOWN = 30;
const TONES = { running: "move", done: "good", failed: "bad", "rolled-back": "bad" };

export class Migrations {
  constructor(store, dialogs) {
    this.store = store;
    this.dialogs = dialogs;
    this.list = byId("moves");
    this.rows = new Map();
    this.opened = null; // id that the reader opened; null: the newest; "": none
    store.frames.on(["migrations", "region"], () => this.draw());
    store.frames.on(["progress", "migrations"], () => this.drawProgress());
  }

  draw() {
    const moves = this.store.newest().slice(0, SHOWN);
    const ids = new Set(moves.map((move) => text(move.record.id)));
    for (const [id, row] of this.rows) {
      if (ids.has(id)) continue;
      row.line.remove();
      this.rows.delete(id);
    }
    byId("moves-empty").hidden = moves.length > 0;
    const done = moves.filter((move) => move.record.outcome === "done").map((move) => num(move.record.freeze_ms)).filter((one) => one !== null).sort((a, b) => a - b);
    say(byId("moves-aside"), done.length ? `median freeze ${ms(done[Math.floor((done.length - 1) / 2)])}` : "");
    const open = this.opened ?? text(moves[0]?.record.id);
    moves.forEach((move, place) => {
      const id = text(move.record.id);
      let row = this.rows.get(id);
      if (!row) {
        row = this.row(id);
        this.rows.set(id, row);
      }
      if (this.list.children[place] !== row.line) this.list.insertBefore(row.line, this.list.children[place] ?? null);
      this.fill(row, move, id === open);
    });
  }

  row(id) {
    const name = el("span", { className: "name" });
    const strategy = el("span", { className: "strategy" });
    const figure = el("span", { className: "figure" });
    const way = el("span", { className: "way" });
    const chip = el("span", { className: "chip" });
    const head = el("button", { type: "button", className: "move-head", "aria-expanded": "false", "aria-controls": `move-${id}`, onclick: () => this.toggle(id) },
      el("span", {}, name, " ", strategy), el("span", { className: "right" }, chip), way, figure);
    const fill = el("span");
    const progress = el("div", { className: "progress", hidden: true }, fill);
    const more = el("div", { className: "move-more", id: `move-${id}`, hidden: true });
    return { line: el("li", { className: "move", "data-id": id }, head, progress, more), head, name, strategy, figure, way, chip, progress, fill, more, drawn: null };
  }

  toggle(id) {
    const row = this.rows.get(id);
    this.opened = row.more.hidden ? id : "";
    this.draw();
    this.drawProgress();
  }

  fill(row, { record }, open) {
    if (row.drawn === record && row.more.hidden === !open) return;
    say(row.name, text(record.service));
    say(row.strategy, text(record.strategy) || "auto");
    say(row.way, `${text(record.source)} → ${text(record.destination)}`);
    const over = record.outcome !== "running";
    if (row.drawn !== record) {
      row.chip.dataset.tone = TONES[record.outcome] ?? "";
      say(row.chip, text(record.outcome));
      row.figure.replaceChildren(...(over && record.outcome === "done" ? [ms(record.freeze_ms), " ", el("small", {}, `of ${ms(record.total_ms)}`)] : []));
    }
    row.progress.hidden = over;
    row.head.setAttribute("aria-expanded", String(open));
    const fresh = row.drawn !== record || row.more.hidden;
    row.more.hidden = !open;
    row.drawn = record;
    if (open && fresh) row.more.replaceChildren(...this.more(record));
  }

  more(record) {
    const parts = [];
    if (record.error) parts.push(el("p", { className: "error" }, text(record.error)));
    const reason = text(record.reason);
    parts.push(el("p", { className: "reason" }, `${clock(record.started_unix_s)}${reason ? ` · ${reason}` : ""} · ${text(record.id)}`));
    const line = timeline(record);
    if (line) parts.push(line);
    if (record.outcome === "running") {
      parts.push(el("div", {}, el("button", { type: "button", className: "small acts", onclick: () => this.dialogs.cancel(record) }, "Cancel migration")));
    } else parts.push(figures(record));
    if (record.rounds?.length) parts.push(el("p", { className: "rounds" }, roundsText(record.rounds)));
    return parts;
  }

  drawProgress() {
    for (const move of this.store.running()) {
      const row = this.rows.get(text(move.record.id));
      if (!row) continue;
      const { progress } = move;
      const fraction = progress?.fraction ?? -1;
      row.fill.style.transform = `scaleX(${fraction < 0 ? 0.04 : Math.min(1, fraction).toFixed(3)})`;
      say(row.figure, progress ? [progress.phase, progress.detail].filter(Boolean).join(": ").slice(0, 60) : "begins");
    }
  }
}

function figures(record) {
  const pairs = [
    ["frozen", ms(record.freeze_ms)],
    ["outage UDP", ms(record.outage_udp_ms)],
    ["outage TCP", ms(record.outage_tcp_ms)],
    ["memory", bytes(record.rss_bytes)],
    ["sent", bytes(record.bytes_sent)],
    ["lost", whole(record.lost)],
  ].filter(([, value]) => value !== DASH);
  const list = el("dl", { className: "pairs" }, ...pairs.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
  list.style.padding = "0";
  return list;
}

function roundsText(rounds) {
  const last = rounds.at(-1);
  const words = rounds.length === 1 ? "1 round" : `${rounds.length} rounds`;
  return `${words}: ${rounds.map((one) => bytes(one.bytes_sent)).join(", ")}; ${whole(last.dirty_pages)} dirty pages in the last`;
}
