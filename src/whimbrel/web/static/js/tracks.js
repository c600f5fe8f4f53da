// What a user did: its whole way, the coarser the longer it is, and lately its delay and signal. Typed arrays, made when
// the first report comes.

const STEPS = 600; // points of the way
const SAMPLES = 480; // of delay and signal: two minutes at four a second
const LEAST_STEP_M = 0.3;
const STILL_M = 0.01;

export class Track {
  constructor() {
    this.x = new Float32Array(STEPS);
    this.y = new Float32Array(STEPS);
    this.steps = 0;
    this.least_m = LEAST_STEP_M;
    this.t_s = new Float64Array(SAMPLES);
    this.delay_ms = new Float32Array(SAMPLES);
    this.rssi_dbm = new Float32Array(SAMPLES);
    this.samples = 0;
  }

  go(x_m, y_m) {
    const last = this.steps - 1;
    if (this.steps > 0 && apart(this.x[last], this.y[last], x_m, y_m) < STILL_M) return;
    // the newest point is always where the user is; it stays when the next one is a step from the one before it
    if (this.steps > 1 && apart(this.x[last], this.y[last], this.x[last - 1], this.y[last - 1]) < this.least_m) this.steps -= 1;
    if (this.steps === STEPS) this.thin();
    this.x[this.steps] = x_m;
    this.y[this.steps] = y_m;
    this.steps += 1;
  }

  /** Every other point goes, and the next ones are twice as far apart: the whole way stays. */
  thin() {
    let kept = 0;
    for (let i = 0; i < this.steps; i += 2) {
      this.x[kept] = this.x[i];
      this.y[kept] = this.y[i];
      kept += 1;
    }
    this.steps = kept;
    this.least_m *= 2;
  }

  sample(t_s, delay_ms, rssi_dbm) {
    const at = this.samples % SAMPLES;
    this.t_s[at] = t_s;
    this.delay_ms[at] = delay_ms ?? Number.NaN;
    this.rssi_dbm[at] = rssi_dbm ?? Number.NaN;
    this.samples += 1;
  }

  /** Samples of before the first one here, the oldest first: [unix time in s, delay in ms, RSSI in dBm]. */
  before(told) {
    const kept = [];
    const count = Math.min(this.samples, SAMPLES);
    for (let i = this.samples - count; i < this.samples; i += 1) {
      const at = i % SAMPLES;
      kept.push([this.t_s[at], this.delay_ms[at], this.rssi_dbm[at]]);
    }
    const first_s = kept[0]?.[0] ?? Infinity;
    const older = told.filter(([t_s]) => t_s < first_s).slice(-Math.max(0, SAMPLES - count));
    this.samples = 0;
    for (const one of [...older, ...kept]) this.sample(...one);
  }

  /** Call `visit(x, y)` along the way, the oldest first. */
  way(visit) {
    for (let i = 0; i < this.steps; i += 1) visit(this.x[i], this.y[i]);
  }

  /** The way as x, y, x, y, … */
  points() {
    const found = new Float32Array(this.steps * 2);
    for (let i = 0; i < this.steps; i += 1) {
      found[i * 2] = this.x[i];
      found[i * 2 + 1] = this.y[i];
    }
    return found;
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

const apart = (x0, y0, x1, y1) => Math.abs(x0 - x1) + Math.abs(y0 - y1);
