// The part of the map that moves: users, their ways, and what belongs to the one that was chosen.

import { nearby } from "./places.js";
import { short } from "./map_ground.js";

const MOST_WAYS = 24;
const MOST_FEW = 150;
const DOT = 2.6;

const kindOf = (user) => (user.state === "handover" ? "handover" : user.state === "connected" || !user.state ? "connected" : "lost");

export class UserLayer {
  constructor() {
    this.sprites = new Map();
    this.at = new Float32Array(0); // x, y in pixels of each user drawn, for the pointer
    this.names = [];
  }

  /** Colours or resolution changed: the dots have to be made anew. */
  forget() {
    this.sprites.clear();
  }

  draw(ctx, view, store, places, theme, ratio) {
    const { colors } = theme;
    ctx.clearRect(0, 0, view.width, view.height);
    const count = store.users.size;
    const many = count > MOST_FEW;
    if (this.at.length < count * 2) this.at = new Float32Array(count * 2 + 64);
    this.names.length = 0;
    const chosen = store.users.get(store.selected.user);
    if (count <= MOST_WAYS) for (const user of store.users.values()) if (user !== chosen) way(ctx, view, user, colors.user, 0.45);
    if (chosen) this.chosenBehind(ctx, view, store, places, theme, chosen);
    const drawn = many ? this.drawMany(ctx, view, store, places, colors) : this.drawFew(ctx, view, store, places, theme, ratio);
    if (many && chosen) this.chosenName(ctx, view, places, theme, chosen);
    return drawn;
  }

  /** Each with its edge and, if they are very few, its name. */
  drawFew(ctx, view, store, places, theme, ratio) {
    const { colors } = theme;
    const sprites = { connected: this.sprite(colors.user, colors.surface, 5, ratio), handover: this.sprite(colors.move, colors.surface, 6, ratio),
      lost: this.sprite(colors["ink-faint"], colors.surface, 5, ratio) };
    return this.each(view, store, places, (user, x, y) => {
      const { image, half } = sprites[kindOf(user)];
      ctx.drawImage(image, Math.round((x - half) * ratio) / ratio, Math.round((y - half) * ratio) / ratio, half * 2, half * 2);
      if (store.users.size <= 12 || user.name === store.selected.user) name(ctx, user, x, y, theme, user.name === store.selected.user);
    });
  }

  /** A thousand dots are three shapes: one of each colour. */
  drawMany(ctx, view, store, places, colors) {
    const shapes = { connected: new Path2D(), handover: new Path2D(), lost: new Path2D() };
    const drawn = this.each(view, store, places, (user, x, y) => {
      const shape = shapes[kindOf(user)];
      shape.moveTo(x + DOT, y);
      shape.arc(x, y, DOT, 0, Math.PI * 2);
    });
    for (const [kind, color] of [["lost", colors["ink-faint"]], ["connected", colors.user], ["handover", colors.move]]) {
      ctx.fillStyle = color;
      ctx.fill(shapes[kind]);
    }
    return drawn;
  }

  /** Call `visit` for every user in sight, and remember where it was drawn; returns how many. */
  each(view, store, places, visit) {
    let drawn = 0;
    for (const user of store.users.values()) {
      const spot = spotOf(user, places);
      if (!spot) continue;
      const x = view.px(spot.x);
      const y = view.py(spot.y);
      if (x < -10 || y < -10 || x > view.width + 10 || y > view.height + 10) continue;
      this.at[drawn * 2] = x;
      this.at[drawn * 2 + 1] = y;
      this.names.push(user.name);
      drawn += 1;
      visit(user, x, y);
    }
    return drawn;
  }

  chosenName(ctx, view, places, theme, user) {
    const spot = spotOf(user, places);
    if (spot) name(ctx, user, view.px(spot.x), view.py(spot.y), theme, true);
  }

  sprite(color, edge, radius, ratio) {
    const key = `${color} ${radius} ${ratio}`;
    let found = this.sprites.get(key);
    if (!found) {
      const half = radius + 2;
      const pixels = Math.ceil(half * 2 * ratio);
      const canvas = new OffscreenCanvas(pixels, pixels);
      const ctx = canvas.getContext("2d");
      ctx.scale(ratio, ratio);
      ctx.beginPath();
      ctx.arc(half, half, radius, 0, Math.PI * 2);
      ctx.fillStyle = color;
      ctx.fill();
      ctx.lineWidth = radius > 4 ? 2 : 0.8;
      ctx.strokeStyle = edge;
      ctx.stroke();
      found = { image: canvas.transferToImageBitmap(), half };
      this.sprites.set(key, found);
    }
    return found;
  }

  chosenBehind(ctx, view, store, places, { colors }, user) {
    way(ctx, view, user, colors.user, 1);
    const spot = spotOf(user, places);
    if (!spot) return;
    const x = view.px(spot.x);
    const y = view.py(spot.y);
    const station = places.stations.get(user.serving);
    if (station) line(ctx, x, y, view.px(station.x), view.py(station.y), colors.station, [2, 3]);
    const service = store.services.find((one) => one.name === user.service);
    const node = service && places.nodes.get(service.node);
    if (node) line(ctx, x, y, view.px(node.x), view.py(node.y) - (node.known ? 24 : 0), colors.node, [6, 4]);
    ctx.beginPath();
    ctx.arc(x, y, 11, 0, Math.PI * 2);
    ctx.strokeStyle = colors.accent;
    ctx.lineWidth = 2;
    ctx.stroke();
  }

  /** The user nearest to a pixel, within reach of a finger; "" for none. */
  hit(px, py) {
    let best = 18 * 18;
    let found = "";
    for (let i = 0; i < this.names.length; i += 1) {
      const dx = this.at[i * 2] - px;
      const dy = this.at[i * 2 + 1] - py;
      const away = dx * dx + dy * dy;
      if (away < best) {
        best = away;
        found = this.names[i];
      }
    }
    return found;
  }
}

function spotOf(user, places) {
  if (user.x_m !== null && user.y_m !== null) return { x: user.x_m, y: user.y_m };
  const station = places.stations.get(user.serving);
  return station ? nearby(user.name, station) : null;
}

function way(ctx, view, user, color, alpha) {
  ctx.beginPath();
  let first = true;
  user.track.way((x, y) => {
    if (first) ctx.moveTo(view.px(x), view.py(y));
    else ctx.lineTo(view.px(x), view.py(y));
    first = false;
  });
  ctx.globalAlpha = alpha * 0.6;
  ctx.strokeStyle = color;
  ctx.lineWidth = 2;
  ctx.setLineDash([]);
  ctx.stroke();
  ctx.globalAlpha = 1;
}

function line(ctx, x0, y0, x1, y1, color, dash) {
  ctx.beginPath();
  ctx.moveTo(x0, y0);
  ctx.lineTo(x1, y1);
  ctx.setLineDash(dash);
  ctx.lineWidth = 1.4;
  ctx.strokeStyle = color;
  ctx.stroke();
  ctx.setLineDash([]);
}

function name(ctx, user, x, y, { colors, font }, strong) {
  ctx.font = `${strong ? 600 : 500} 12px ${font}`;
  ctx.textAlign = "center";
  ctx.textBaseline = "middle";
  ctx.lineWidth = 3.5;
  ctx.strokeStyle = colors.sunken;
  const words = short(user.name, 24);
  ctx.strokeText(words, x, y + 18);
  ctx.fillStyle = colors.ink;
  ctx.fillText(words, x, y + 18);
}
