// Which part of the region the map shows: metres to pixels and back, moved by pointer, wheel and keys.

const MOST_ZOOM = 40;
const STEP = 1.35;

export class View {
  constructor(element, changed) {
    this.element = element;
    this.changed = changed;
    this.width = 1;
    this.height = 1;
    this.bounds = { x0: 0, y0: 0, x1: 100, y1: 100 };
    this.margins = { left: 0, right: 0, top: 0, bottom: 0 }; // px that nothing is put into when all is shown
    this.scale = 1;
    this.x = 50; // metres in the middle
    this.y = 50;
    this.fitted = true;
    this.pointers = new Map();
    this.moved = 0;
    this.listen();
  }

  /** `margins`: what the search box, the legend and the names around the outermost places take. */
  resize(width, height, margins) {
    this.width = Math.max(1, width);
    this.height = Math.max(1, height);
    this.margins = margins;
    if (this.fitted) this.fit();
  }

  setBounds(bounds) {
    this.bounds = bounds;
    if (this.fitted) this.fit();
  }

  get whole() {
    const { x0, y0, x1, y1 } = this.bounds;
    const width = Math.max(x1 - x0, 1);
    const height = Math.max(y1 - y0, 1);
    const { left, right, top, bottom } = this.margins;
    return Math.min(Math.max(40, this.width - left - right) / width, Math.max(40, this.height - top - bottom) / height);
  }

  fit() {
    this.fitted = true;
    this.scale = Math.max(1e-6, this.whole);
    const { left, right, top, bottom } = this.margins;
    this.x = (this.bounds.x0 + this.bounds.x1) / 2 + (right - left) / 2 / this.scale;
    this.y = (this.bounds.y0 + this.bounds.y1) / 2 + (top - bottom) / 2 / this.scale;
  }

  px(x) {
    return (x - this.x) * this.scale + this.width / 2;
  }

  py(y) {
    return (this.y - y) * this.scale + this.height / 2;
  }

  zoom(factor, px = this.width / 2, py = this.height / 2) {
    const whole = Math.max(1e-6, this.whole);
    const scale = Math.min(whole * MOST_ZOOM, Math.max(whole * 0.4, this.scale * factor));
    const x = this.x + (px - this.width / 2) / this.scale;
    const y = this.y - (py - this.height / 2) / this.scale;
    this.scale = scale;
    this.x = x - (px - this.width / 2) / scale;
    this.y = y + (py - this.height / 2) / scale;
    this.fitted = false;
    this.changed();
  }

  pan(dx, dy) {
    this.x -= dx / this.scale;
    this.y += dy / this.scale;
    this.fitted = false;
    this.changed();
  }

  listen() {
    const { element } = this;
    element.addEventListener("wheel", (event) => {
      event.preventDefault();
      const box = element.getBoundingClientRect();
      this.zoom(Math.exp(-event.deltaY / 400), event.clientX - box.left, event.clientY - box.top);
    }, { passive: false });
    element.addEventListener("pointerdown", (event) => {
      element.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
      this.moved = 0;
    });
    element.addEventListener("pointermove", (event) => this.drag(event));
    for (const end of ["pointerup", "pointercancel"]) {
      element.addEventListener(end, (event) => this.pointers.delete(event.pointerId));
    }
    element.addEventListener("keydown", (event) => this.key(event));
  }

  drag(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    const now = { x: event.clientX, y: event.clientY };
    const apart = this.apart();
    this.pointers.set(event.pointerId, now);
    this.moved += Math.abs(now.x - before.x) + Math.abs(now.y - before.y);
    if (this.pointers.size === 1) this.pan(now.x - before.x, now.y - before.y);
    else if (apart > 0) this.zoom(this.apart() / apart);
  }

  apart() {
    const [a, b] = [...this.pointers.values()];
    return b ? Math.hypot(a.x - b.x, a.y - b.y) : 0;
  }

  key(event) {
    const moves = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] };
    if (event.key in moves) this.pan(...moves[event.key]);
    else if (event.key === "+" || event.key === "=") this.zoom(STEP);
    else if (event.key === "-") this.zoom(1 / STEP);
    else if (event.key === "0") {
      this.fit();
      this.changed();
    } else return;
    event.preventDefault();
  }
}

export const ZOOM_STEP = STEP;
