// Where names stand on the map, so that none lies over another: servers with the tags of their services, or with a
// count where tags have no room, and base stations. Pixels. Pure.

import { called, text } from "./format.js";

const MOST_NAMED = 40; // with more stations or servers than this, names only where there is room
const MOST_NODES = 24;
const MOST_SERVICES = 3;
const TAG_HIGH = 19;
const LIFT = 24; // a server stands so far above its place, where mostly its base station is

export const short = (words, most) => (words.length > most ? `${words.slice(0, most - 1)}…` : words);

/** `width(words, kind)`: of a text in px; `covered`: boxes of what stands over the map, as the search box does.
 * {stations, servers, boxes}: what to draw, and what is taken; a `soft` box may be covered where there is no other room. */
export function layout(view, places, services, width, covered = []) {
  const roomy = places.stations.size <= MOST_NAMED || view.scale > view.whole * 2.5;
  const roomyNodes = places.nodes.size <= MOST_NODES || view.scale > view.whole * 2.5;
  const stations = [...places.stations].map(([name, place]) => stationOf(view, name, place, roomy, width));
  const on = byNode(services);
  const servers = [...places.nodes].map(([name, place]) => serverOf(view, name, place, on.get(name) ?? [], roomyNodes, width));
  for (const one of servers) {
    if (!one.lines.length) continue;
    const others = servers.filter((other) => other !== one).flatMap((other) => (other.tags ? [...other.boxes, other.tags] : other.boxes));
    one.tags = [tagsOf(one, 1), tagsOf(one, -1)].find((box) => box.x0 >= 2 && box.x1 <= view.width - 2 && free(box, [...others, ...covered])) ?? null;
    if (!one.tags) count(one, width);
  }
  const boxes = [...covered, ...servers.flatMap((one) => (one.tags ? [...one.boxes, one.tags] : one.boxes)), ...stations.map((one) => one.box)];
  return { stations, servers, boxes };
}

export const free = (box, taken) => taken.every((other) => box.x1 < other.x0 || box.x0 > other.x1 || box.y1 < other.y0 || box.y0 > other.y1);

function byNode(services) {
  const on = new Map();
  for (const one of services) {
    if (!on.has(one.node)) on.set(one.node, []);
    on.get(one.node).push(one);
  }
  return on;
}

function stationOf(view, name, place, named, width) {
  const x = view.px(place.x);
  const y = view.py(place.y);
  const zone = text(place.station.zone);
  const label = named ? short(name, 22) : "";
  const under = named && zone && zone !== name ? short(called("zone", zone), 26) : "";
  const half = Math.max(10, width(label, "station") / 2, width(under, "zone") / 2);
  return { x, y, label, under, box: { x0: x - half, x1: x + half, y0: y - 8, y1: y + (under ? 43 : label ? 29 : 8), soft: true } };
}

function serverOf(view, name, place, services, named, width) {
  const x = view.px(place.x);
  const y = view.py(place.y) - (place.known ? LIFT : 0);
  const server = { x, y, up: place.node.up, name: short(name, 24), label: "", lines: [], tags: null, wide: 0, services: services.length, left: false };
  if (!named) {
    server.label = services.length ? String(services.length) : "";
    server.boxes = [{ x0: x - 13, x1: x + 13, y0: y - (services.length ? 25 : 10), y1: y + 10 }];
    return server;
  }
  server.label = server.name;
  server.lines = services.slice(0, MOST_SERVICES).map((one) => short(text(one.name), 20));
  if (services.length > MOST_SERVICES) server.lines[MOST_SERVICES - 1] = `+ ${services.length - MOST_SERVICES + 1} more`;
  server.wide = Math.max(0, ...server.lines.map((line) => width(line, "tag") + 12));
  server.boxes = boxesOf(server, width);
  return server;
}

/** Of the symbol, and of the name above it. */
function boxesOf({ x, y, label }, width) {
  const half = width(label, "server") / 2;
  return [{ x0: x - 13, x1: x + 13, y0: y - 10, y1: y + 10 }, { x0: x - half, x1: x + half, y0: y - 28, y1: y - 10 }];
}

function tagsOf(server, side) {
  const near = server.x + side * 17;
  const far = near + side * server.wide;
  return { x0: Math.min(near, far), x1: Math.max(near, far), y0: server.y - 9, y1: server.y - 9 + server.lines.length * TAG_HIGH };
}

/** Tags have no room: how many there are stands with the server's name. */
function count(server, width) {
  server.lines = [];
  server.label = `${server.name} · ${server.services}`;
  server.boxes = boxesOf(server, width);
}
