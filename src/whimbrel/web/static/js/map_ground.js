// The part of the map that seldom changes: cells, and above them base stations, edge servers and the services on them.

import { cellOf } from "./places.js";

const FONTS = { station: [500, 12], zone: [400, 11], server: [600, 12.5], count: [600, 11], tag: [500, 11.5] };
const MOST_WIDTHS = 2000;

const fontOf = (kind, family) => `${FONTS[kind][0]} ${FONTS[kind][1]}px ${family}`;

/** How wide words are; each is measured once. */
export class Widths {
  constructor(ctx) {
    this.ctx = ctx;
    this.known = new Map();
  }

  of(words, kind, family) {
    if (!words) return 0;
    const key = `${kind} ${words}`;
    let found = this.known.get(key);
    if (found === undefined) {
      if (this.known.size > MOST_WIDTHS) this.known.clear();
      this.ctx.font = fontOf(kind, family);
      found = this.ctx.measureText(words).width;
      this.known.set(key, found);
    }
    return found;
  }
}

export function drawCells(ctx, view, places, { colors }) {
  ctx.clearRect(0, 0, view.width, view.height);
  ctx.lineJoin = "round";
  const stations = [...places.stations.values()].filter((one) => one.station.reach_m > 0);
  const zones = [...new Set(stations.map((one) => one.station.zone))].sort();
  for (const one of stations) {
    const reach = one.station.reach_m;
    const box = { x0: one.x - reach, y0: one.y - reach, x1: one.x + reach, y1: one.y + reach };
    const polygon = cellOf(one, stations, box);
    if (polygon.length < 3) continue;
    ctx.save();
    ctx.beginPath();
    polygon.forEach(([x, y], i) => (i ? ctx.lineTo(view.px(x), view.py(y)) : ctx.moveTo(view.px(x), view.py(y))));
    ctx.closePath();
    ctx.clip();
    ctx.beginPath();
    ctx.arc(view.px(one.x), view.py(one.y), reach * view.scale, 0, Math.PI * 2);
    ctx.fillStyle = zones.indexOf(one.station.zone) % 2 ? colors["cell-b"] : colors["cell-a"];
    ctx.fill();
    ctx.strokeStyle = colors["cell-edge"];
    ctx.lineWidth = 2;
    ctx.stroke();
    ctx.beginPath();
    polygon.forEach(([x, y], i) => (i ? ctx.lineTo(view.px(x), view.py(y)) : ctx.moveTo(view.px(x), view.py(y))));
    ctx.closePath();
    ctx.lineWidth = 1;
    ctx.setLineDash([4, 4]);
    ctx.stroke();
    ctx.restore();
  }
}

/** What `layout` (map_layout.js) has laid out. */
export function drawGround(ctx, view, { stations, servers }, theme) {
  ctx.clearRect(0, 0, view.width, view.height);
  ctx.lineJoin = "round";
  for (const one of stations) drawStation(ctx, one, theme);
  for (const one of servers) drawServer(ctx, one, theme);
}

function drawStation(ctx, { x, y, label, under }, { colors, font }) {
  ctx.strokeStyle = colors.station;
  ctx.lineWidth = 1.6;
  ctx.fillStyle = colors.surface;
  ctx.beginPath();
  ctx.arc(x, y, 5, 0, Math.PI * 2);
  ctx.fill();
  ctx.stroke();
  ctx.beginPath();
  ctx.arc(x, y, 9.5, -0.7, 0.7);
  ctx.moveTo(x + 9.5 * Math.cos(Math.PI - 0.7), y + 9.5 * Math.sin(Math.PI - 0.7));
  ctx.arc(x, y, 9.5, Math.PI - 0.7, Math.PI + 0.7);
  ctx.stroke();
  if (label) words(ctx, label, x, y + 22, fontOf("station", font), colors["ink-soft"], colors.sunken);
  if (under) words(ctx, under, x, y + 36, fontOf("zone", font), colors["ink-faint"], colors.sunken);
}

function drawServer(ctx, { x, y, up, label, name, lines, tags, wide }, { colors, font }) {
  ctx.fillStyle = up ? colors.node : colors.surface;
  ctx.strokeStyle = up ? colors.node : colors.bad;
  ctx.lineWidth = 1.6;
  if (!up) ctx.setLineDash([3, 3]);
  ctx.beginPath();
  ctx.roundRect(x - 11, y - 9, 22, 18, 4);
  ctx.fill();
  ctx.stroke();
  ctx.setLineDash([]);
  ctx.fillStyle = up ? colors.surface : colors.bad;
  ctx.fillRect(x - 6, y - 4.5, 8, 1.8);
  ctx.fillRect(x - 6, y + 2.7, 8, 1.8);
  ctx.fillRect(x + 4.4, y - 4.6, 2, 2);
  ctx.fillRect(x + 4.4, y + 2.6, 2, 2);
  const named = label.startsWith(name);
  if (label) words(ctx, label, x, y - (named ? 19 : 17), fontOf(named ? "server" : "count", font), up ? colors.ink : colors.bad, colors.sunken);
  if (tags) lines.forEach((line, i) => tag(ctx, line, tags.x0 > x ? tags.x0 : tags.x1, y - 9 + i * 19, tags.x0 > x ? 1 : -1, wide, { colors, font }));
}

/** A service's name in a little box that begins at `near` and goes to the right (1) or to the left (-1). */
function tag(ctx, line, near, y, side, wide, { colors, font }) {
  ctx.font = fontOf("tag", font);
  const width = Math.min(wide, ctx.measureText(line).width + 12);
  const x = side > 0 ? near : near - width;
  ctx.fillStyle = colors.surface;
  ctx.strokeStyle = colors["line-strong"];
  ctx.lineWidth = 1;
  ctx.beginPath();
  ctx.roundRect(x, y, width, 17, 5);
  ctx.fill();
  ctx.stroke();
  ctx.fillStyle = colors.ink;
  ctx.textAlign = "left";
  ctx.textBaseline = "middle";
  ctx.fillText(line, x + 6, y + 9);
}

function words(ctx, said, x, y, font, color, behind) {
  ctx.font = font;
  ctx.textAlign = "center";
  ctx.textBaseline = "middle";
  ctx.lineWidth = 3.5;
  ctx.strokeStyle = behind;
  ctx.strokeText(said, x, y);
  ctx.fillStyle = color;
  ctx.fillText(said, x, y);
}
