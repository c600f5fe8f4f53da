// The part of the map that seldom changes: cells, base stations, edge servers and the services on them.

import { called } from "./format.js";
import { cellOf } from "./places.js";

const MOST_NAMED = 40; // with more stations or servers than this, names only where there is room
const MOST_SERVICES = 3;

export function drawGround(ctx, view, places, services, theme) {
  const { colors } = theme;
  ctx.clearRect(0, 0, view.width, view.height);
  ctx.lineJoin = "round";
  drawCells(ctx, view, places, colors);
  const roomy = places.stations.size <= MOST_NAMED || view.scale > view.whole * 2.5;
  for (const [name, place] of places.stations) drawStation(ctx, view, name, place, roomy, theme);
  const on = servicesByNode(services);
  const roomyNodes = places.nodes.size <= 24 || view.scale > view.whole * 2.5;
  for (const [name, place] of places.nodes) drawNode(ctx, view, name, place, on.get(name) ?? [], roomyNodes, theme);
}

function servicesByNode(services) {
  const on = new Map();
  for (const one of services) {
    if (!on.has(one.node)) on.set(one.node, []);
    on.get(one.node).push(one);
  }
  return on;
}

function drawCells(ctx, view, places, colors) {
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

function drawStation(ctx, view, name, place, named, { colors, font }) {
  const x = view.px(place.x);
  const y = view.py(place.y);
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
  if (!named) return;
  label(ctx, short(name, 22), x, y + 22, `500 12px ${font}`, colors["ink-soft"], colors.sunken);
  const zone = place.station.zone;
  if (zone && zone !== name) label(ctx, short(called("zone", zone), 26), x, y + 36, `400 11px ${font}`, colors["ink-faint"], colors.sunken);
}

function drawNode(ctx, view, name, place, services, named, { colors, font }) {
  const x = view.px(place.x);
  const y = view.py(place.y) - (place.known ? 24 : 0);
  const up = place.node.up;
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
  if (!named) {
    if (services.length) label(ctx, String(services.length), x, y - 17, `600 11px ${font}`, colors.ink, colors.sunken);
    return;
  }
  label(ctx, short(name, 24), x, y - 19, `600 12.5px ${font}`, up ? colors.ink : colors.bad, colors.sunken);
  const lines = services.slice(0, MOST_SERVICES).map((one) => short(one.name, 20));
  if (services.length > MOST_SERVICES) lines[MOST_SERVICES - 1] = `+ ${services.length - MOST_SERVICES + 1} more`;
  lines.forEach((text, i) => tag(ctx, text, x, y - 9 + i * 19, view.width, { colors, font }));
}

/** A service's name in a little box, to the right of its server at `middle`, or to the left where there is no room. */
function tag(ctx, text, middle, y, room, { colors, font }) {
  ctx.font = `500 11.5px ${font}`;
  const width = ctx.measureText(text).width + 12;
  const x = middle + 17 + width > room - 4 ? middle - 17 - width : middle + 17;
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
  ctx.fillText(text, x + 6, y + 9);
}

function label(ctx, text, x, y, font, color, behind) {
  ctx.font = font;
  ctx.textAlign = "center";
  ctx.textBaseline = "middle";
  ctx.lineWidth = 3.5;
  ctx.strokeStyle = behind;
  ctx.strokeText(text, x, y);
  ctx.fillStyle = color;
  ctx.fillText(text, x, y);
}

export const short = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
