// When to draw: what was touched is drawn together, in one animation frame, at most four times a second, and a view that
// says so less often. A reader's own doing (a selection, a resize) is drawn in the next frame. Nothing is drawn while
// nobody looks.

const LEAST_MS = 250;
const SOON_MS = 80; // a view that is due so soon is drawn with the others: one frame costs less than two

export class Frames {
  constructor() {
    this.views = [];
    this.asked = false;
    this.timer = 0;
    this.due_ms = 0; // when it goes off
    this.urgent = false;
    this.drawn_ms = -LEAST_MS;
    document.addEventListener("visibilitychange", () => this.soon());
  }

  /** `draw` is called when one of the topics was touched, `least_ms` after it was last, or later. One that touches no
   * element (`elsewhere`: it tells a worker) needs no frame of the page by itself. */
  on(topics, draw, { least_ms = LEAST_MS, elsewhere = false } = {}) {
    this.views.push({ topics, draw, least_ms, elsewhere, touched: new Set(), drawn_ms: -least_ms });
  }

  touch(topics) {
    for (const view of this.views) {
      for (const topic of topics) if (view.topics.includes(topic)) view.touched.add(topic);
    }
    if (!this.asked) this.plan();
  }

  /** Draw when the first view is due. */
  plan() {
    let due_ms = Infinity;
    for (const view of this.views) if (view.touched.size) due_ms = Math.min(due_ms, view.drawn_ms + view.least_ms);
    due_ms = Math.max(this.drawn_ms + LEAST_MS, due_ms);
    if (due_ms === Infinity || (this.timer && this.due_ms <= due_ms)) return;
    clearTimeout(this.timer);
    this.due_ms = due_ms;
    this.timer = setTimeout(() => this.go(), Math.max(0, due_ms - performance.now()));
  }

  soon() {
    this.urgent = true;
    this.go();
  }

  go() {
    clearTimeout(this.timer);
    this.timer = 0;
    if (this.asked || document.hidden) return;
    const due = this.due(performance.now());
    if (!due.length) {
      this.plan();
      return;
    }
    if (due.every((view) => view.elsewhere)) {
      this.draw();
      return;
    }
    this.asked = true;
    requestAnimationFrame(() => this.draw());
  }

  due(now_ms) {
    return this.views.filter((view) => view.touched.size > 0 && (this.urgent || now_ms >= view.drawn_ms + view.least_ms - SOON_MS));
  }

  draw() {
    this.asked = false;
    this.drawn_ms = performance.now();
    const due = this.due(this.drawn_ms);
    this.urgent = false;
    for (const view of due) {
      const { touched } = view;
      view.touched = new Set();
      view.drawn_ms = this.drawn_ms;
      view.draw(touched);
    }
    performance.measure("whimbrel-draw", { start: this.drawn_ms, end: performance.now() });
    performance.clearMeasures("whimbrel-draw");
    if (!this.asked) this.plan();
  }
}
