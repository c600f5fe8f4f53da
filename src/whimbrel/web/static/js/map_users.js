// The part of the map that moves: users, their ways, and what belongs to the one that was chosen. Here it is gathered,
// in metres; a worker (`map_users_worker.js`) draws it, so that a thousand dots cost the page's thread next to nothing.

import { short } from "./map_layout.js";
import { nearby } from "./places.js";

const MOST_WAYS = 24;
const MOST_NAMED = 12;
const REACH = 18; // px, of a finger
const KINDS = { connected: 0, handover: 1, lost: 2 };

const kindOf = (user) => (user.state === "handover" ? KINDS.handover : user.state === "connected" || !user.state ? KINDS.connected : KINDS.lost);

export class UserLayer {
  constructor(canvas) {
    this.worker = new Worker(new URL("./map_users_worker.js", import.meta.url), { type: "module" });
    const offscreen = canvas.transferControlToOffscreen();
    this.worker.postMessage({ canvas: offscreen }, [offscreen]);
  }

  resize(width, height, ratio) {
    this.worker.postMessage({ size: { width, height, ratio } });
  }

  color({ colors, font }) {
    const { user, move, surface, sunken, ink, station, node, accent } = colors;
    this.worker.postMessage({ theme: { user, move, surface, sunken, ink, station, node, accent, lost: colors["ink-faint"], font } });
  }

  draw(view, store, places) {
    const { x, y, scale, width, height } = view;
    const told = sceneOf(store, places);
    const moved = [told.spots.buffer, ...told.ways.map((way) => way.points.buffer)];
    this.worker.postMessage({ scene: { view: { x, y, scale, width, height }, ...told } }, moved);
  }

  /** The user nearest to a pixel, within reach of a finger; "" for none. */
  hit(px, py, view, store, places) {
    let best = REACH * REACH;
    let found = "";
    for (const user of store.users.values()) {
      const spot = spotOf(user, places);
      if (!spot) continue;
      const dx = view.px(spot.x) - px;
      const dy = view.py(spot.y) - py;
      const away = dx * dx + dy * dy;
      if (away < best) {
        best = away;
        found = user.name;
      }
    }
    return found;
  }
}

/** All that is drawn, in metres: `spots` holds x, y and kind of each user. */
export function sceneOf(store, places) {
  const { users } = store;
  const chosen = users.get(store.selected.user);
  const spots = new Float32Array(users.size * 3);
  const names = [];
  const ways = [];
  let count = 0;
  for (const user of users.values()) {
    const spot = spotOf(user, places);
    if (!spot) continue;
    spots[count] = spot.x;
    spots[count + 1] = spot.y;
    spots[count + 2] = kindOf(user);
    count += 3;
    if (users.size <= MOST_NAMED || user === chosen) names.push({ words: short(user.name, 24), x: spot.x, y: spot.y, strong: user === chosen });
    if (users.size <= MOST_WAYS && user !== chosen) ways.push({ points: user.track.points(), alpha: 0.45 });
  }
  if (chosen) ways.push({ points: chosen.track.points(), alpha: 1 });
  return { spots: spots.slice(0, count), many: users.size > 150, names, ways, chosen: chosen ? linesOf(chosen, store, places) : null };
}

/** The chosen user's place, and those of its base station and of its service's server. */
function linesOf(user, store, places) {
  const spot = spotOf(user, places);
  if (!spot) return null;
  const station = places.stations.get(user.serving);
  const service = store.services.find((one) => one.name === user.service);
  const node = service && places.nodes.get(service.node);
  return {
    x: spot.x,
    y: spot.y,
    station: station ? { x: station.x, y: station.y } : null,
    node: node ? { x: node.x, y: node.y, lift: node.known ? 24 : 0 } : null,
  };
}

function spotOf(user, places) {
  if (user.x_m !== null && user.y_m !== null) return { x: user.x_m, y: user.y_m };
  const station = places.stations.get(user.serving);
  return station ? nearby(user.name, station) : null;
}
