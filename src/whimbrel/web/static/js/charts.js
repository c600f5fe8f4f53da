// A line over the last two minutes, or since the first sample, on a canvas: one series, few ticks, marks where a migration
// took place.

const WINDOW_S = 120;
const LEAST_S = 10;
const LEFT = 38;
const BOTTOM = 16;

export class Chart {
  /** `range(low, high)` gives the axis for what there is to show; `resized` asks for a drawing. */
  constructor(canvas, { series, color, range, resized }) {
    this.canvas = canvas;
    this.series = series;
    this.color = color;
    this.range = range;
    this.size = { width: 0, height: 0 };
    new ResizeObserver(([entry]) => {
      this.size = { width: entry.contentRect.width, height: entry.contentRect.height };
      if (this.size.width) resized();
    }).observe(canvas);
  }

  draw(track, marks, { colors, font }) {
    const { width, height } = this.size;
    if (!width || !height) return;
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    if (this.canvas.width !== Math.round(width * ratio)) this.canvas.width = Math.round(width * ratio);
    if (this.canvas.height !== Math.round(height * ratio)) this.canvas.height = Math.round(height * ratio);
    const ctx = this.canvas.getContext("2d");
    ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    ctx.clearRect(0, 0, width, height);
    const now_s = Date.now() / 1000;
    let first_s = now_s;
    track.series(this.series, now_s - WINDOW_S, (t_s, value) => {
      if (!Number.isNaN(value)) first_s = Math.min(first_s, t_s);
    });
    const span_s = spanOf(first_s, now_s);
    const from_s = now_s - span_s;
    let low = Infinity;
    let high = -Infinity;
    track.series(this.series, from_s, (_, value) => {
      if (Number.isNaN(value)) return;
      low = Math.min(low, value);
      high = Math.max(high, value);
    });
    const [y0, y1] = this.range(low, high);
    const x = (t_s) => LEFT + ((t_s - from_s) / span_s) * (width - LEFT - 4);
    const y = (value) => 6 + (1 - (value - y0) / (y1 - y0)) * (height - BOTTOM - 8);
    this.axes(ctx, { width, height, x, y, y0, y1, now_s, span_s, colors, font });
    for (const at_s of marks) {
      if (at_s < from_s) continue;
      ctx.fillStyle = colors.move;
      ctx.fillRect(Math.round(x(at_s)), 4, 1.5, height - BOTTOM - 4);
    }
    ctx.beginPath();
    let pen = false;
    let last = from_s;
    track.series(this.series, from_s, (t_s, value) => {
      if (Number.isNaN(value) || t_s - last > 6) pen = false;
      last = t_s;
      if (Number.isNaN(value)) return;
      if (pen) ctx.lineTo(x(t_s), y(value));
      else ctx.moveTo(x(t_s), y(value));
      pen = true;
    });
    ctx.strokeStyle = colors[this.color];
    ctx.lineWidth = 1.6;
    ctx.lineJoin = "round";
    ctx.stroke();
  }

  axes(ctx, { width, height, x, y, y0, y1, now_s, span_s, colors, font }) {
    ctx.font = `400 11px ${font}`;
    ctx.textBaseline = "middle";
    ctx.textAlign = "right";
    ctx.lineWidth = 1;
    for (const value of [y0, (y0 + y1) / 2, y1]) {
      ctx.fillStyle = colors.line;
      ctx.fillRect(LEFT, Math.round(y(value)), width - LEFT - 4, 1);
      ctx.fillStyle = colors["ink-faint"];
      ctx.fillText(Number.isInteger(value) ? String(value) : value.toFixed(1), LEFT - 6, y(value));
    }
    ctx.textBaseline = "alphabetic";
    ctx.textAlign = "center";
    for (const ago of ticksOf(span_s)) ctx.fillText(`−${ago} s`, x(now_s - ago), height - 2);
    ctx.textAlign = "right";
    ctx.fillText("now", width - 4, height - 2);
  }
}

/** How much time an axis shows: what there are samples of, two minutes at most. */
export const spanOf = (first_s, now_s) => Math.min(WINDOW_S, Math.max(LEAST_S, now_s - first_s));

/** How long ago its ticks are, the oldest first; none close to either end, where a label has no room. */
export function ticksOf(span_s) {
  const step = [2.5, 5, 10, 15, 30].find((one) => span_s / one <= 4.5) ?? 30;
  const ticks = [];
  for (let ago = step; ago < span_s * 0.95; ago += step) if (ago > span_s * 0.1) ticks.unshift(ago);
  return ticks;
}

/** An axis from 0 to a round number above. */
export function fromZero(low, high) {
  if (!(high > 0)) return [0, 10];
  const power = 10 ** Math.floor(Math.log10(high));
  const step = [1, 2, 5, 10].find((one) => one * power >= high * 1.05) ?? 10;
  return [0, step * power];
}

/** An axis of whole tens around what there is. */
export function tens(low, high) {
  if (low > high) return [-100, -40];
  const y0 = Math.floor((low - 2) / 10) * 10;
  const y1 = Math.ceil((high + 2) / 10) * 10;
  return [y0, Math.max(y1, y0 + 20)];
}
