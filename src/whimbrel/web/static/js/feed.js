// The controller's events, written into the store. The stream comes back by itself after a loss: the browser sends the
// last id that it had, and when it gives up (a refusal, a proxy's error) we begin anew, more and more slowly.

import { api, Problem } from "./api.js";
import { MOST_LINES } from "./store.js";

const SILENT_MS = 15_000; // the controller gives a sign of life every 5 s
const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 15_000;

export class Feed {
  constructor(store) {
    this.store = store;
    this.wait_ms = FIRST_WAIT_MS;
    this.heard_ms = 0;
    this.source = null;
    this.again = 0;
    setInterval(() => this.watch(), 5000);
    window.addEventListener("online", () => this.open());
  }

  open() {
    clearTimeout(this.again);
    this.source?.close();
    this.heard_ms = performance.now();
    const source = new EventSource("v1/events");
    this.source = source;
    const take = (event, handler) => {
      source.addEventListener(event, (message) => {
        if (source !== this.source) return;
        this.heard_ms = performance.now();
        let data;
        try {
          data = JSON.parse(message.data);
        } catch {
          return; // not ours: the next one may be
        }
        handler(data);
      });
    };
    take("region", (region) => this.begin(region));
    take("users", (users) => this.store.takeUsers(users));
    take("gone", (names) => this.store.dropUsers(names));
    take("services", (services) => this.store.setServices(services));
    take("nodes", (nodes) => this.store.setNodes(nodes));
    take("migration", (news) => {
      if (news.record) this.store.takeRecord(news.record);
      else if (news.progress) this.store.takeProgress(news.id ?? news.progress.migration, news.progress);
    });
    take("decision", (decision) => this.store.takeDecision(decision));
    take("log", (line) => this.store.takeLine(line));
    take("alive", () => {});
    source.addEventListener("open", () => {
      this.wait_ms = FIRST_WAIT_MS;
      this.store.setLink("live", "live");
    });
    source.addEventListener("error", () => {
      if (source !== this.source) return;
      this.store.setLink("lost", "connecting again");
      if (source.readyState === EventSource.CLOSED) this.refused();
    });
  }

  begin(region) {
    this.store.setRegion(region);
    this.store.setLink("live", "live");
    // what was logged before the page was opened, or while it was away
    api.log(MOST_LINES).then((lines) => this.store.takeLines(lines), () => {});
    api.migrations(30).then(
      (records) => {
        for (const record of [...records].reverse()) {
          const known = this.store.migrations.get(String(record.id));
          if (!known || known.record.outcome === "running") this.store.takeRecord(record);
        }
      },
      () => {}, // the list is an extra: the stream tells what comes
    );
  }

  /** The browser has given up: find out why. A missing token is asked for on the way. */
  async refused() {
    this.source?.close();
    try {
      await api.region();
    } catch (problem) {
      if (problem instanceof Problem && problem.status) this.store.setLink("lost", problem.message);
    }
    clearTimeout(this.again);
    this.again = setTimeout(() => this.open(), this.wait_ms * (0.8 + 0.4 * Math.random()));
    this.wait_ms = Math.min(LONGEST_WAIT_MS, this.wait_ms * 2);
  }

  watch() {
    if (this.source?.readyState === EventSource.OPEN && performance.now() - this.heard_ms > SILENT_MS) {
      this.store.setLink("lost", "silent: connecting again");
      this.open();
    }
  }
}
