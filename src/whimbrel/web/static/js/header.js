// The line at the top: are we connected, and how much is there.

import { api } from "./api.js";
import { byId, say } from "./dom.js";
import { DASH, text, whole } from "./format.js";

export function header(store) {
  logOut(store);
  const state = byId("link-state");
  store.frames.on(["link"], () => {
    state.dataset.state = store.link.state;
    say(byId("link-text"), store.link.text);
  });
  store.frames.on(["region", "nodes", "who", "services", "migrations"], () => {
    const servers = store.nodes.filter((one) => one.role !== "gateway");
    const down = store.nodes.filter((one) => !one.up).length;
    say(byId("fact-nodes"), store.known ? `${whole(servers.length)}${down ? ` (${down} down)` : ""}` : DASH);
    say(byId("fact-users"), store.known ? whole(store.users.size) : DASH);
    say(byId("fact-services"), store.known ? whole(store.services.length) : DASH);
    say(byId("fact-moving"), store.known ? whole(store.running().length) : DASH);
    for (const [what, count] of [["nodes", servers.length], ["users", store.users.size], ["services", store.services.length]]) {
      const word = what === "nodes" ? "server" : what.slice(0, -1);
      say(byId(`fact-${what}`).previousElementSibling, count === 1 ? word : `${word}s`);
    }
    say(byId("fact-planner"), store.settings.planner || DASH);
  });
}

/** Only who has logged in can log out; what a role may not do is not offered (`.acts`: the style sheet hides it). */
function logOut(store) {
  const button = byId("log-out");
  store.frames.on(["region"], () => {
    api.session().then((session) => {
      button.hidden = !text(session.name);
      document.documentElement.dataset.role = text(session.role);
      button.title = `Logged in as ${text(session.name)} (${text(session.role)})`;
    }, () => {});
  });
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      await api.logOut();
    } finally {
      location.reload(); // nothing of what was shown stays
    }
  });
}
