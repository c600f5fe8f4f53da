// When to draw: what was touched is drawn together, in one animation frame, at most four times a second. A reader's own
// doing (a selection, a resize) is drawn in the next frame. Nothing is drawn while nobody looks.

const LEAST_MS = 250;

export class Frames {
  constructor() {
    this.views = [];
    this.touched = new Set();
    this.asked = false;
    this.timer = 0;
    this.drawn_ms = -LEAST_MS;
    document.addEventListener("visibilitychange", () => this.soon());
  }

  /** `draw` is called when one of the topics was touched. */
  on(topics, draw) {
    this.views.push({ topics, draw });
  }

  touch(topics) {
    for (const topic of topics) this.touched.add(topic);
    if (this.asked || this.timer) return;
    const wait_ms = this.drawn_ms + LEAST_MS - performance.now();
    if (wait_ms <= 0) this.soon();
    else this.timer = setTimeout(() => this.soon(), wait_ms);
  }

  soon() {
    clearTimeout(this.timer);
    this.timer = 0;
    if (this.asked || document.hidden || this.touched.size === 0) return;
    this.asked = true;
    requestAnimationFrame(() => this.draw());
  }

  draw() {
    const touched = this.touched;
    this.touched = new Set();
    this.asked = false;
    this.drawn_ms = performance.now();
    for (const view of this.views) {
      if (view.topics.some((topic) => touched.has(topic))) view.draw(touched);
    }
    performance.measure("whimbrel-draw", { start: this.drawn_ms, end: performance.now() });
    performance.clearMeasures("whimbrel-draw");
  }
}
