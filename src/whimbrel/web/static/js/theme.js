// Light, dark, or as the system has it. Canvases ask for colours here: they know no CSS.

const ORDER = ["", "light", "dark"];
const WORDS = { "": "as the system", light: "light", dark: "dark" };
const KEY = "whimbrel-theme";

export class Theme {
  constructor(button, store) {
    this.button = button;
    this.store = store;
    this.system = matchMedia("(prefers-color-scheme: dark)");
    this.choice = stored();
    this.colors = {};
    this.system.addEventListener("change", () => this.apply());
    button.addEventListener("click", () => {
      this.choice = ORDER[(ORDER.indexOf(this.choice) + 1) % ORDER.length];
      try {
        localStorage.setItem(KEY, this.choice);
      } catch {
        // a browser that keeps nothing: the choice lasts as long as the page
      }
      this.apply();
    });
    this.apply();
  }

  apply() {
    const dark = this.choice ? this.choice === "dark" : this.system.matches;
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    const words = `Colours: ${WORDS[this.choice]}`;
    this.button.setAttribute("aria-label", words);
    this.button.title = words;
    const style = getComputedStyle(document.documentElement);
    for (const name of ["ground", "surface", "sunken", "line", "line-strong", "ink", "ink-soft", "ink-faint", "accent",
      "move", "bad", "node", "station", "user", "cell-a", "cell-b", "cell-edge"]) {
      this.colors[name] = style.getPropertyValue(`--${name}`).trim();
    }
    this.font = style.getPropertyValue("--font").trim();
    this.store.touch("theme");
    this.store.frames.soon();
  }
}

function stored() {
  try {
    const found = localStorage.getItem(KEY) ?? "";
    return ORDER.includes(found) ? found : "";
  } catch {
    return "";
  }
}
