// Pictures of finished experiments, asked for when the pane is first opened.

import { api } from "./api.js";
import { byId, el } from "./dom.js";
import { day, text } from "./format.js";

export class Experiments {
  constructor(dialogs) {
    this.dialogs = dialogs;
    this.box = byId("experiments");
  }

  async show(visible) {
    if (!visible) return;
    const empty = byId("experiments-empty");
    try {
      const found = await api.experiments();
      this.box.replaceChildren(...found.map((one) => this.card(one)));
      empty.hidden = found.length > 0;
      empty.textContent = "No finished experiment is here.";
    } catch (problem) {
      this.box.replaceChildren();
      empty.hidden = false;
      empty.textContent = problem.message;
    }
  }

  card(one) {
    const name = text(one.name);
    const pictures = (Array.isArray(one.pictures) ? one.pictures : []).map((path) => {
      const source = api.experimentFile(path);
      return el("button", { type: "button", className: "picture", "aria-label": `Show ${name} large`, onclick: () => this.dialogs.picture(`${name} ${text(one.figure)}`, source) },
        el("img", { src: source, alt: `${name} ${text(one.figure)}`, loading: "lazy" }));
    });
    const files = (Array.isArray(one.files) ? one.files : []).map((path) => el("a", { href: api.experimentFile(path), target: "_blank", rel: "noopener" }, text(path).split("/").pop()));
    const links = files.flatMap((link, i) => (i ? [" · ", link] : [link]));
    return el("article", { className: "experiment" }, ...pictures, el("h3", {}, name), el("p", {}, [text(one.figure), day(one.unix_s)].filter(Boolean).join(" · "), links.length ? " · " : null, ...links));
  }
}
