// The dashboard: one store, one feed that writes it, views that read it.

import { byId } from "./dom.js";
import { Decisions } from "./decisions.js";
import { Dialogs } from "./dialogs.js";
import { Experiments } from "./experiments.js";
import { Feed } from "./feed.js";
import { Frames } from "./frames.js";
import { header } from "./header.js";
import { Log } from "./log.js";
import { RegionMap } from "./map.js";
import { Migrations } from "./migrations.js";
import { Nodes } from "./nodes.js";
import { Services } from "./services.js";
import { Store } from "./store.js";
import { tabs } from "./tabs.js";
import { Theme } from "./theme.js";
import { UserPanel } from "./user.js";

const store = new Store(new Frames());
const theme = new Theme(byId("theme"), store);
const dialogs = new Dialogs(store);
header(store);
new RegionMap(store, theme);
new Migrations(store, dialogs);
new UserPanel(store, theme);
const panes = {
  log: new Log(store),
  services: new Services(store, dialogs),
  nodes: new Nodes(store),
  decisions: new Decisions(store),
  experiments: new Experiments(dialogs),
};
tabs(document.querySelector("[role=tablist]"), (chosen) => {
  for (const [name, pane] of Object.entries(panes)) pane.show(name === chosen);
});
new Feed(store).open();
