// The map: canvases for what stays (cells; servers, services and base stations), for the users and for the arcs, the last
// two drawn by workers, and above them the arcs' names.

import { byId, say } from "./dom.js";
import { whole } from "./format.js";
import { Arcs } from "./map_arcs.js";
import { drawCells, drawGround, Widths } from "./map_ground.js";
import { layout } from "./map_layout.js";
import { UserLayer } from "./map_users.js";
import { View, ZOOM_STEP } from "./map_view.js";
import { placesOf } from "./places.js";

const SUMMARY_EVERY_MS = 5000;
const AROUND = { left: 70, right: 96, top: 58, bottom: 52 }; // px for the names of the outermost servers and base stations
const AROUND_NARROW = { left: 58, right: 58, top: 58, bottom: 46 };
const NARROW = 600;
const NEAR = 4; // px that a name keeps from what stands over the map

export class RegionMap {
  constructor(store, theme) {
    this.store = store;
    this.theme = theme;
    this.cells = byId("map-cells");
    this.ground = byId("map-ground");
    this.live = byId("map-live");
    this.places = placesOf([], []);
    this.placed = "";
    this.users = new UserLayer(this.live);
    this.arcs = new Arcs(byId("map-arcs"), byId("map-moves"));
    this.view = new View(this.live, () => this.redraw());
    this.widths = new Widths(this.ground.getContext("2d"));
    this.laid = layout(this.view, this.places, [], () => 0);
    this.served = "";
    this.covered = [];
    this.summary_ms = -SUMMARY_EVERY_MS;
    this.leaving = 0;
    this.color();
    new ResizeObserver(() => this.resize()).observe(byId("map"));
    this.live.addEventListener("click", (event) => this.click(event));
    this.live.addEventListener("keydown", (event) => {
      if ((event.key === "[" || event.key === "]") && !event.ctrlKey && !event.metaKey) this.step(event.key === "]" ? 1 : -1);
    });
    byId("zoom-in").addEventListener("click", () => this.view.zoom(ZOOM_STEP));
    byId("zoom-out").addEventListener("click", () => this.view.zoom(1 / ZOOM_STEP));
    byId("zoom-fit").addEventListener("click", () => {
      this.view.fit();
      this.redraw();
    });
    store.frames.on(["region", "nodes", "services", "view", "theme"], (touched) => this.drawGround(touched));
    store.frames.on(["users", "region", "nodes", "view", "theme", "selection", "services"], () => this.drawUsers(), { elsewhere: true });
    store.frames.on(["migrations", "progress", "arcs", "region", "nodes", "view"], () => this.drawArcs());
    store.frames.on(["region", "who"], () => this.summary(), { least_ms: SUMMARY_EVERY_MS });
  }

  color() {
    this.users.color(this.theme);
    this.arcs.color(this.theme.colors);
  }

  redraw() {
    this.store.touch("view");
    this.store.frames.soon();
  }

  resize() {
    const box = byId("map").getBoundingClientRect();
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    for (const canvas of [this.cells, this.ground]) {
      canvas.width = Math.round(box.width * ratio);
      canvas.height = Math.round(box.height * ratio);
      canvas.getContext("2d").setTransform(ratio, 0, 0, ratio, 0, 0);
    }
    this.users.resize(box.width, box.height, ratio);
    this.arcs.resize(box.width, box.height, ratio);
    this.cover(box);
    this.redraw();
  }

  /** What stands over the map: nothing of the region is put under it when all is shown, and no name. */
  cover(map) {
    const of = (chosen) => {
      const { left, right, top, bottom } = document.querySelector(chosen).getBoundingClientRect();
      return { x0: left - map.left - NEAR, x1: right - map.left + NEAR, y0: top - map.top - NEAR, y1: bottom - map.top + NEAR };
    };
    const [find, zoom, legend] = [of("#map .find"), of("#map .zoom"), of("#map .legend")];
    const narrow = map.width < NARROW; // there the scale stands between search box and buttons
    const scale = narrow ? { x0: find.x1, x1: zoom.x0, y0: 8, y1: find.y1 } : { x0: map.width - 130, x1: map.width, y0: legend.y1 - 32, y1: legend.y1 };
    this.covered = [find, zoom, legend, scale];
    const around = narrow ? AROUND_NARROW : AROUND;
    this.view.resize(map.width, map.height, {
      left: around.left,
      right: around.right,
      top: find.y1 + around.top,
      bottom: map.height - legend.y0 + around.bottom,
    });
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
    if (touched.has("theme")) this.color();
    const anew = changed || ["region", "view", "theme"].some((topic) => touched.has(topic));
    const served = JSON.stringify(this.store.services.map((one) => [one.name, one.node]));
    if (!anew && served === this.served) return;
    this.served = served;
    if (anew) {
      drawCells(this.cells.getContext("2d"), this.view, this.places, this.theme);
      byId("map-empty").hidden = this.store.known;
      this.drawScale();
    }
    const width = (words, kind) => this.widths.of(words, kind, this.theme.font);
    this.laid = layout(this.view, this.places, this.store.services, width, this.covered);
    drawGround(this.ground.getContext("2d"), this.view, this.laid, this.theme);
  }

  drawScale() {
    const scale = byId("map-scale");
    scale.hidden = !this.places.toScale;
    if (scale.hidden) return;
    const steps = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000];
    const metres = steps.find((step) => step * this.view.scale >= (this.view.width < NARROW ? 34 : 56)) ?? steps.at(-1);
    scale.firstElementChild.style.width = `${Math.min(200, metres * this.view.scale)}px`;
    say(scale.lastElementChild, metres >= 1000 ? `${metres / 1000} km` : `${metres} m`);
  }

  drawUsers() {
    this.users.draw(this.view, this.store, this.places);
  }

  summary() {
    const { nodes, stations } = this.places;
    say(byId("map-summary"), `${whole(nodes.size)} edge servers, ${whole(stations.size)} base stations, ${whole(this.store.users.size)} users`);
  }

  drawArcs() {
    const leaving = this.arcs.draw(this.store, this.view, this.places, this.laid.boxes);
    clearTimeout(this.leaving);
    if (leaving) this.leaving = setTimeout(() => this.store.touch("arcs"), 1000);
  }

  /** `[` and `]`: the user before and the one after that which is chosen, told to who cannot see it. */
  step(by) {
    const names = [...this.store.users.keys()];
    if (!names.length) return;
    const at = names.indexOf(this.store.selected.user);
    const name = names[at < 0 ? (by > 0 ? 0 : names.length - 1) : (at + by + names.length) % names.length];
    this.store.select({ user: name });
    const user = this.store.users.get(name);
    const where = [user.state, user.serving && `at ${user.serving}`, user.service && `service ${user.service}`].filter(Boolean).join(", ");
    say(byId("map-said"), `${name}${where ? `: ${where}` : ""}`);
  }

  click(event) {
    if (this.view.moved > 6) return;
    const box = this.live.getBoundingClientRect();
    const name = this.users.hit(event.clientX - box.left, event.clientY - box.top, this.view, this.store, this.places);
    if (name) this.store.select({ user: name });
  }
}
