// The map: two canvases (what stays, what moves) and the arcs above them.

import { byId, say } from "./dom.js";
import { whole } from "./format.js";
import { Arcs } from "./map_arcs.js";
import { drawGround } from "./map_ground.js";
import { UserLayer } from "./map_users.js";
import { View, ZOOM_STEP } from "./map_view.js";
import { placesOf } from "./places.js";

const SUMMARY_EVERY_MS = 5000;

export class RegionMap {
  constructor(store, theme) {
    this.store = store;
    this.theme = theme;
    this.ground = byId("map-ground");
    this.live = byId("map-live");
    this.places = placesOf([], []);
    this.placed = "";
    this.users = new UserLayer();
    this.arcs = new Arcs(byId("map-arcs"), byId("map-moves"));
    this.view = new View(this.live, () => this.redraw());
    this.summary_ms = -SUMMARY_EVERY_MS;
    this.leaving = 0;
    new ResizeObserver(() => this.resize()).observe(byId("map"));
    this.live.addEventListener("click", (event) => this.click(event));
    byId("zoom-in").addEventListener("click", () => this.view.zoom(ZOOM_STEP));
    byId("zoom-out").addEventListener("click", () => this.view.zoom(1 / ZOOM_STEP));
    byId("zoom-fit").addEventListener("click", () => {
      this.view.fit();
      this.redraw();
    });
    store.frames.on(["region", "nodes", "services", "view", "theme"], (touched) => this.drawGround(touched));
    store.frames.on(["users", "region", "nodes", "view", "theme", "selection", "services"], () => this.drawUsers());
    store.frames.on(["migrations", "progress", "arcs", "region", "nodes", "view"], () => this.drawArcs());
  }

  redraw() {
    this.store.touch("view");
    this.store.frames.soon();
  }

  resize() {
    const box = byId("map").getBoundingClientRect();
    this.ratio = Math.min(window.devicePixelRatio || 1, 2);
    for (const canvas of [this.ground, this.live]) {
      canvas.width = Math.round(box.width * this.ratio);
      canvas.height = Math.round(box.height * this.ratio);
      canvas.getContext("2d").setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    }
    this.users.forget();
    this.arcs.resize(box.width, box.height, this.ratio);
    this.view.resize(box.width, box.height);
    this.redraw();
  }

  /** Places are worked out again only when something was put elsewhere, not with every figure of a node. */
  place() {
    const { nodes, stations } = this.store;
    const key = JSON.stringify([nodes.map((one) => [one.name, one.role, one.x_m, one.y_m, one.up]), stations]);
    const changed = key !== this.placed;
    if (changed) {
      this.placed = key;
      this.places = placesOf(nodes, stations);
      this.view.setBounds(this.places.bounds);
    }
    return changed;
  }

  drawGround(touched) {
    const changed = this.place();
    if (touched.has("theme")) {
      this.users.forget();
      this.arcs.color(this.theme.colors);
    }
    const needed = changed || ["region", "services", "view", "theme"].some((topic) => touched.has(topic));
    if (!needed) return;
    drawGround(this.ground.getContext("2d"), this.view, this.places, this.store.services, this.theme);
    byId("map-empty").hidden = this.store.known;
    this.drawScale();
  }

  drawScale() {
    const scale = byId("map-scale");
    scale.hidden = !this.places.toScale;
    if (scale.hidden) return;
    const steps = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000];
    const metres = steps.find((step) => step * this.view.scale >= 56) ?? steps.at(-1);
    scale.firstElementChild.style.width = `${Math.min(200, metres * this.view.scale)}px`;
    say(scale.lastElementChild, metres >= 1000 ? `${metres / 1000} km` : `${metres} m`);
  }

  drawUsers() {
    this.users.draw(this.live.getContext("2d"), this.view, this.store, this.places, this.theme, this.ratio ?? 1);
    const now_ms = performance.now();
    if (now_ms - this.summary_ms < SUMMARY_EVERY_MS) return;
    this.summary_ms = now_ms;
    const { nodes, stations, users } = this.places ? { nodes: this.places.nodes, stations: this.places.stations, users: this.store.users } : {};
    say(byId("map-summary"), `${whole(nodes.size)} edge servers, ${whole(stations.size)} base stations, ${whole(users.size)} users`);
  }

  drawArcs() {
    const leaving = this.arcs.draw(this.store, this.view, this.places);
    clearTimeout(this.leaving);
    if (leaving) this.leaving = setTimeout(() => this.store.touch("arcs"), 1000);
  }

  click(event) {
    if (this.view.moved > 6) return;
    const box = this.live.getBoundingClientRect();
    const name = this.users.hit(event.clientX - box.left, event.clientY - box.top);
    if (name) this.store.select({ user: name });
  }
}
