// What a user did lately: its way, and its delay and signal. Typed rings, made when the first report comes.

const STEPS = 90; // points of the way
const SAMPLES = 480; // of delay and signal: two minutes at four a second
const LEAST_STEP_M = 0.3;

export class Track {
  constructor() {
    this.x = new Float32Array(STEPS);
    this.y = new Float32Array(STEPS);
    this.steps = 0;
    this.t_s = new Float64Array(SAMPLES);
    this.delay_ms = new Float32Array(SAMPLES);
    this.rssi_dbm = new Float32Array(SAMPLES);
    this.samples = 0;
  }

  go(x_m, y_m) {
    if (this.steps > 0) {
      const last = (this.steps - 1) % STEPS;
      if (Math.abs(this.x[last] - x_m) + Math.abs(this.y[last] - y_m) < LEAST_STEP_M) return;
    }
    const at = this.steps % STEPS;
    this.x[at] = x_m;
    this.y[at] = y_m;
    this.steps += 1;
  }

  sample(t_s, delay_ms, rssi_dbm) {
    const at = this.samples % SAMPLES;
    this.t_s[at] = t_s;
    this.delay_ms[at] = delay_ms ?? Number.NaN;
    this.rssi_dbm[at] = rssi_dbm ?? Number.NaN;
    this.samples += 1;
  }

  /** Call `visit(x, y, age)` along the way, the oldest first; `age` 1 is the oldest, 0 now. */
  way(visit) {
    const count = Math.min(this.steps, STEPS);
    for (let i = this.steps - count; i < this.steps; i += 1) {
      const at = i % STEPS;
      visit(this.x[at], this.y[at], (this.steps - 1 - i) / Math.max(1, count - 1));
    }
  }

  /** Call `visit(t_s, value)` for each sample of `series` since `from_s`, the oldest first. */
  series(name, from_s, visit) {
    const values = this[name];
    const count = Math.min(this.samples, SAMPLES);
    for (let i = this.samples - count; i < this.samples; i += 1) {
      const at = i % SAMPLES;
      if (this.t_s[at] >= from_s) visit(this.t_s[at], values[at]);
    }
  }
}
