// The log: what came, with time, cell, zone and coordinates. New lines stand on top; the page holds a few hundred.
// Few of them are elements while new ones come, because each new line moves all that are below it.

import { byId, el } from "./dom.js";
import { called, clock, coordinates, text } from "./format.js";

const SHOWN_AT_TOP = 24; // while new lines come; who scrolls down gets all, and no new ones until back at the top

const DRAWN_EVERY_MS = 1000; // nobody reads faster, and each time all lines are laid out anew

export class Log {
  constructor(store) {
    this.store = store;
    this.list = byId("log");
    this.kind = byId("log-kind");
    this.words = byId("log-text");
    this.pause = byId("log-pause");
    this.shown = 0; // lines of the store that were looked at
    this.visible = true;
    this.scroll = byId("log-scroll");
    this.whole = false; // all lines are there, and new ones wait
    const aloud = byId("log-aloud"); // lines come faster than any voice: only who asks for it is read to
    aloud.addEventListener("change", () => this.list.setAttribute("aria-live", aloud.checked ? "polite" : "off"));
    store.frames.on(["log"], () => this.draw(), { least_ms: DRAWN_EVERY_MS });
    store.frames.on(["history"], () => this.visible && this.again());
    for (const input of [this.kind, this.words, this.pause]) input.addEventListener("input", () => this.again());
    this.scroll.addEventListener("scroll", () => {
      const down = this.scroll.scrollTop > 0;
      if (down === this.whole) return;
      this.whole = down;
      this.again();
    }, { passive: true });
  }

  /** A list that nobody sees is not worked on. */
  show(visible) {
    this.visible = visible;
    if (visible) this.again();
  }

  again() {
    if (this.pause.checked) return;
    const kept = this.whole ? this.list.childElementCount : 0; // lines that are there stay: the reader looks at them
    if (kept) {
      const older = this.store.log.filter((line) => this.wanted(line)).reverse();
      const first = older.indexOf(this.last);
      if (first >= 0) this.list.append(...older.slice(first + 1).map(row));
      return;
    }
    this.list.replaceChildren();
    this.shown = this.store.lines - this.store.log.length;
    this.fill();
  }

  draw() {
    if (this.visible && !this.pause.checked && !this.whole) this.fill();
  }

  fill() {
    const { log, lines } = this.store;
    const fresh = log.slice(Math.max(0, log.length - (lines - this.shown)));
    this.shown = lines;
    const wanted = fresh.filter((line) => this.wanted(line)).slice(-SHOWN_AT_TOP);
    byId("log-empty").hidden = wanted.length + this.list.childElementCount > 0;
    if (!wanted.length) return;
    this.list.prepend(...wanted.reverse().map(row));
    while (this.list.childElementCount > SHOWN_AT_TOP) this.list.lastElementChild.remove();
    const there = log.filter((line) => this.wanted(line));
    this.last = there[Math.max(0, there.length - this.list.childElementCount)];
  }

  wanted(line) {
    if (this.kind.value && line.kind !== this.kind.value) return false;
    const words = this.words.value.trim().toLowerCase();
    if (!words) return true;
    return [line.text, line.user, line.cell, line.zone, line.service, line.node].some((one) => text(one).toLowerCase().includes(words));
  }
}

function row(line) {
  const place = [called("cell", line.cell), called("zone", line.zone), coordinates(line.x_m, line.y_m)];
  return el("li", { "data-level": text(line.level) },
    el("time", {}, clock(line.unix_s, true)),
    el("span", { className: "kind" }, text(line.kind)),
    el("span", { className: "text" }, text(line.text)),
    el("span", { className: "where" }, place.filter(Boolean).join(" · ")));
}
