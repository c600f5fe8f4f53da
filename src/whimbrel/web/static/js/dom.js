// Elements with text. What comes from outside only ever becomes text or a property, never markup.

export const byId = (id) => document.getElementById(id);

/** An element: `attributes` (className, data-*, aria-* and the like), then children: nodes or text. */
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "className") made.className = value;
    else if (name === "onclick") made.addEventListener("click", value);
    else made.setAttribute(name, value === true ? "" : String(value));
  }
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

const SVG = "http://www.w3.org/2000/svg";

export function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, String(value));
  made.append(...children);
  return made;
}

/** Set text only where it changed: an unchanged node costs no layout. */
export function say(node, text) {
  const value = String(text);
  if (node.textContent !== value) node.textContent = value;
}

let toasts;

/** A short word to the reader that goes away by itself. */
export function toast(text, tone = "") {
  toasts ??= byId("toasts");
  const made = el("p", { className: "toast", "data-tone": tone }, text);
  toasts.append(made);
  setTimeout(() => made.remove(), tone === "bad" ? 9000 : 5000);
}
