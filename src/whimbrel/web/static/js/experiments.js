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
      const title = `${name}: ${figureOf(path)}`;
      return el("button", { type: "button", className: "picture", "aria-label": `Show ${title} large`, onclick: () => this.dialogs.picture(title, source) },
        el("img", { src: source, alt: title, loading: "lazy" }), el("span", { className: "caption" }, figureOf(path)));
    });
    const files = (Array.isArray(one.files) ? one.files : []).map((path) => el("a", { href: api.experimentFile(path), target: "_blank", rel: "noopener" }, text(path).split("/").pop()));
    const links = files.flatMap((link, i) => (i ? [" · ", link] : [link]));
    return el("article", { className: "experiment" }, ...pictures, el("h3", {}, name), el("p", {}, day(one.unix_s), links.length ? " · " : null, ...links));
  }
}

/** "fast/figure-4.png" is figure 4. */
const figureOf = (path) => text(path).split("/").pop().replace(/\.[a-z]+$/, "").replaceAll("-", " ");
