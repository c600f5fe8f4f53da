// Numbers as people read them. What is no number becomes a dash.

export const DASH = "–";

/** A finite number, or null: what comes from outside may be anything. */
export const num = (value) => (typeof value === "number" && Number.isFinite(value) ? value : null);

export const text = (value) => (value === null || value === undefined ? "" : String(value));

export function ms(value) {
  const found = num(value);
  if (found === null) return DASH;
  if (found >= 10_000) return `${(found / 1000).toFixed(1)} s`;
  if (found >= 1000) return `${(found / 1000).toFixed(2)} s`;
  return `${found >= 100 ? found.toFixed(0) : found.toFixed(1)} ms`;
}

const UNITS = ["B", "kB", "MB", "GB", "TB"];

export function bytes(value) {
  let found = num(value);
  if (found === null) return DASH;
  let unit = 0;
  while (found >= 1000 && unit < UNITS.length - 1) {
    found /= 1000;
    unit += 1;
  }
  return `${unit === 0 || found >= 100 ? found.toFixed(0) : found.toFixed(1)} ${UNITS[unit]}`;
}

export function rate(bps) {
  const found = num(bps);
  if (found === null) return DASH;
  if (found >= 1e9) return `${(found / 1e9).toFixed(1)} Gbit/s`;
  if (found >= 1e6) return `${(found / 1e6).toFixed(1)} Mbit/s`;
  return `${(found / 1e3).toFixed(found >= 1e4 ? 0 : 1)} kbit/s`;
}

export const whole = (value) => (num(value) === null ? DASH : WHOLE.format(value));
const WHOLE = new Intl.NumberFormat("en");

const pad = (value, width = 2) => String(value).padStart(width, "0");

/** A moment of today as HH:MM:SS, with thousandths if wanted (local time). */
export function clock(unix_s, thousandths = false) {
  const found = num(unix_s);
  if (!found) return DASH;
  const date = new Date(found * 1000);
  const seconds = `${pad(date.getHours())}:${pad(date.getMinutes())}:${pad(date.getSeconds())}`;
  return thousandths ? `${seconds}.${pad(date.getMilliseconds(), 3)}` : seconds;
}

export function day(unix_s) {
  const found = num(unix_s);
  return found ? new Date(found * 1000).toLocaleString([], { dateStyle: "medium", timeStyle: "short" }) : DASH;
}

export function coordinates(x_m, y_m) {
  const x = num(x_m);
  const y = num(y_m);
  return x === null || y === null ? "" : `${x.toFixed(1)}, ${y.toFixed(1)} m`;
}

/** "zone north", but not "cell cell-1". */
export function called(what, name) {
  const word = text(name);
  return !word || word.startsWith(what) ? word : `${what} ${word}`;
}
