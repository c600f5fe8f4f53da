// Where things are on the map, in metres. What has no coordinates gets a place in a plain scheme: edge servers in a row
// above the base stations.

const SPACING_M = 100;

/** Places of a region: {nodes, stations: Map of name -> {x, y, known}, bounds, toScale, homes}; `homes` leads from a
 * gateway's name to its base station. */
export function placesOf(nodes, told) {
  const stations = withGateways(told, nodes);
  const placed = new Map();
  const homes = new Map();
  const known = stations.filter((one) => one.x_m !== null && one.y_m !== null);
  let next = 0;
  for (const one of known) next = Math.max(next, one.x_m + SPACING_M);
  for (const one of stations) {
    const has = one.x_m !== null && one.y_m !== null;
    placed.set(one.name, { x: has ? one.x_m : next, y: has ? one.y_m : 0, known: has, station: one });
    homes.set(one.gateway || one.name, one.name);
    if (!has) next += SPACING_M;
  }
  const edges = nodes.filter((one) => one.role !== "gateway");
  const servers = placeServers(edges, [...placed.values()]);
  const bounds = boundsOf([...placed.values(), ...servers.values()]);
  const toScale = known.length > 0 || edges.some((one) => one.x_m !== null);
  return { nodes: servers, stations: placed, bounds, toScale, homes };
}

/** A gateway that no base station names is one itself, without a cell. */
function withGateways(told, nodes) {
  const named = new Set(told.map((one) => one.gateway || one.name));
  const bare = nodes
    .filter((one) => one.role === "gateway" && !named.has(one.name))
    .map((one) => ({ name: one.name, gateway: one.name, zone: "", x_m: one.x_m, y_m: one.y_m, reach_m: null }));
  return [...told, ...bare];
}

function placeServers(edges, stations) {
  const placed = new Map();
  const around = boundsOf(stations.length ? stations : [{ x: 0, y: 0 }]);
  const width = Math.max(around.x1 - around.x0, SPACING_M);
  const height = Math.max(around.y1 - around.y0, width * 0.45);
  const without = edges.filter((one) => one.x_m === null || one.y_m === null);
  const middle = (around.x0 + around.x1) / 2;
  const perRow = Math.max(3, Math.ceil(Math.sqrt(without.length * 3)));
  edges.forEach((node) => {
    if (node.x_m !== null && node.y_m !== null) {
      placed.set(node.name, { x: node.x_m, y: node.y_m, known: true, node });
      return;
    }
    const index = without.indexOf(node);
    const row = Math.floor(index / perRow);
    const inRow = Math.min(perRow, without.length - row * perRow);
    const share = inRow === 1 ? 0 : (index % perRow) / (inRow - 1) - 0.5;
    placed.set(node.name, { x: middle + share * width, y: around.y1 + height * (0.5 + row * 0.28), known: false, node });
  });
  return placed;
}

function boundsOf(places) {
  if (!places.length) return { x0: 0, y0: 0, x1: SPACING_M, y1: SPACING_M };
  const bounds = { x0: Infinity, y0: Infinity, x1: -Infinity, y1: -Infinity };
  for (const { x, y } of places) {
    bounds.x0 = Math.min(bounds.x0, x);
    bounds.y0 = Math.min(bounds.y0, y);
    bounds.x1 = Math.max(bounds.x1, x);
    bounds.y1 = Math.max(bounds.y1, y);
  }
  return bounds;
}

/** A place near its base station for a user that tells none; always the same for the same name. */
export function nearby(name, station) {
  let hash = 7;
  for (let i = 0; i < name.length; i += 1) hash = (hash * 31 + name.charCodeAt(i)) >>> 0;
  const angle = ((hash % 360) / 180) * Math.PI;
  const away = SPACING_M * (0.16 + 0.12 * ((hash >>> 9) % 10) / 10);
  return { x: station.x + Math.cos(angle) * away, y: station.y - Math.abs(Math.sin(angle)) * away };
}

/** The part of `box` that is nearer to station `mine` than to any other: its polygon, by cutting half-planes. */
export function cellOf(mine, stations, box) {
  let polygon = [[box.x0, box.y0], [box.x1, box.y0], [box.x1, box.y1], [box.x0, box.y1]];
  for (const other of stations) {
    if (other === mine || (other.x === mine.x && other.y === mine.y)) continue;
    const nx = other.x - mine.x;
    const ny = other.y - mine.y;
    const limit = (other.x * other.x + other.y * other.y - mine.x * mine.x - mine.y * mine.y) / 2;
    const side = ([x, y]) => nx * x + ny * y - limit;
    const cut = [];
    for (let i = 0; i < polygon.length; i += 1) {
      const a = polygon[i];
      const b = polygon[(i + 1) % polygon.length];
      const sa = side(a);
      const sb = side(b);
      if (sa <= 0) cut.push(a);
      if (sa < 0 !== sb < 0 && sa !== sb) {
        const t = sa / (sa - sb);
        cut.push([a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t]);
      }
    }
    polygon = cut;
    if (!polygon.length) break;
  }
  return polygon;
}
