// What a reader can do: run, migrate, cancel, remove; and the token. <dialog> keeps the focus inside and gives it back.

import { api, onToken, openSession } from "./api.js";
import { byId, el, toast } from "./dom.js";
import { bytes, ms, num, text } from "./format.js";

const POLL_MS = 300;
const POLLS = 200;

export class Dialogs {
  constructor(store) {
    this.store = store;
    for (const dialog of document.querySelectorAll("dialog")) {
      for (const button of dialog.querySelectorAll("[data-close]")) button.addEventListener("click", () => dialog.close());
      dialog.addEventListener("click", (event) => {
        if (event.target === dialog && dialog.id !== "dialog-token") dialog.close();
      });
    }
    this.setUpRun();
    this.setUpMigrate();
    this.setUpToken();
    this.confirmDialog = byId("dialog-confirm");
    handle(this.confirmDialog, async (form) => {
      await this.confirmed(form.elements.option.checked);
      this.confirmDialog.close();
    });
    byId("open-run").addEventListener("click", () => this.run());
    byId("open-migrate").addEventListener("click", () => this.migrate(""));
  }

  edges() {
    return this.store.nodes.filter((one) => one.role !== "gateway");
  }

  run() {
    const dialog = byId("dialog-run");
    fillSelect(dialog.querySelector("[name=node]"), this.edges().filter((one) => one.up).map((one) => one.name));
    open(dialog);
  }

  setUpRun() {
    const dialog = byId("dialog-run");
    handle(dialog, async (form) => {
      const fields = form.elements;
      const service = await api.run({
        name: fields.name.value.trim(),
        image: fields.image.value.trim(),
        node: fields.node.value,
        ports: fields.ports.value.split(/[\s,]+/).filter(Boolean),
        env: fields.env.value.split("\n").map((one) => one.trim()).filter(Boolean),
      });
      dialog.close();
      form.reset();
      toast(`${text(service?.spec?.name)} runs on ${text(service?.node)}`);
    });
  }

  /** `service`: the one to begin with; "" for any. */
  migrate(service) {
    const dialog = byId("dialog-migrate");
    const services = this.store.services.map((one) => one.name);
    const chosen = dialog.querySelector("[name=service]");
    fillSelect(chosen, services, service);
    const strategies = ["auto", ...this.store.settings.strategies.filter((one) => one !== "auto")];
    fillSelect(dialog.querySelector("[name=strategy]"), strategies);
    this.offerDestinations();
    dialog.querySelector(".forecast").hidden = true;
    open(dialog);
  }

  offerDestinations() {
    const dialog = byId("dialog-migrate");
    const service = this.store.services.find((one) => one.name === dialog.querySelector("[name=service]").value);
    fillSelect(dialog.querySelector("[name=destination]"), this.edges().filter((one) => one.up && one.name !== service?.node).map((one) => one.name));
  }

  setUpMigrate() {
    const dialog = byId("dialog-migrate");
    const form = dialog.querySelector("form");
    form.elements.service.addEventListener("change", () => this.offerDestinations());
    form.addEventListener("change", () => {
      dialog.querySelector(".forecast").hidden = true;
    });
    const wanted = () => ({
      service: form.elements.service.value,
      destination: form.elements.destination.value,
      strategy: form.elements.strategy.value || "auto",
      max_downtime_ms: Number(form.elements.max_downtime_ms.value) || 0,
    });
    handle(dialog, async () => {
      const record = await api.migrate({ ...wanted(), reason: "asked for on the dashboard" });
      this.store.takeRecord(record);
      dialog.close();
    });
    dialog.querySelector("[data-dry-run]").addEventListener("click", (event) => {
      if (!form.reportValidity()) return;
      attempt(form, event.currentTarget, async () => this.forecast(dialog, wanted()));
    });
  }

  /** A dry run's answer, and what such migrations took before. */
  async forecast(dialog, wanted) {
    const box = dialog.querySelector(".forecast");
    box.hidden = false;
    box.replaceChildren(el("p", {}, "Checking both nodes…"));
    try {
      let record = await api.migrate({ ...wanted, dry_run: true });
      for (let i = 0; record.outcome === "running" && i < POLLS; i += 1) {
        await new Promise((resolve) => setTimeout(resolve, POLL_MS));
        record = await api.migration(record.id);
      }
      box.replaceChildren(...this.prediction(record));
    } catch (problem) {
      box.hidden = true;
      throw problem;
    }
  }

  prediction(record) {
    if (record.outcome !== "dry-run") return [el("b", {}, "It cannot be moved so."), el("p", {}, text(record.error) || text(record.outcome))];
    const before = this.store.newest().map((move) => move.record)
      .filter((one) => one.outcome === "done" && one.service === record.service && one.strategy === record.strategy).slice(0, 10);
    const middle = (name) => before.map((one) => num(one[name]) ?? 0).sort((a, b) => a - b)[Math.floor((before.length - 1) / 2)];
    const past = before.length
      ? `The last ${before.length === 1 ? "time" : `${before.length} times`} it was frozen for ${ms(middle("freeze_ms"))}, and all took ${ms(middle("total_ms"))}.`
      : "It has not been moved with this strategy yet.";
    const memory = num(record.rss_bytes) ? ` It has ${bytes(record.rss_bytes)} of memory.` : "";
    return [
      el("b", {}, `${text(record.service)} can move from ${text(record.source)} to ${text(record.destination)} by ${text(record.strategy)}.`),
      el("p", {}, text(record.reason)),
      el("p", {}, past + memory),
    ];
  }

  cancel(record) {
    this.confirm({
      title: `Cancel the migration of ${text(record.service)}?`,
      words: `It goes on running on ${text(record.source)}. After the commit a migration can no longer be cancelled.`,
      button: "Cancel migration",
      keep: "Let it go on",
      act: () => api.cancel(text(record.id)),
    });
  }

  remove(service) {
    this.confirm({
      title: `Remove ${service}?`,
      words: "It is stopped, and its memory and files are gone.",
      option: "Keep its volumes",
      button: "Remove",
      keep: "Keep it",
      act: async (keepVolumes) => {
        await api.remove(service, keepVolumes);
        toast(`${service} was removed`);
      },
    });
  }

  confirm({ title, words, button, keep, option = "", act }) {
    const dialog = this.confirmDialog;
    dialog.querySelector("h2").textContent = title;
    dialog.querySelector("[data-words]").textContent = words;
    dialog.querySelector("[type=submit]").textContent = button;
    dialog.querySelector("[data-close]").textContent = keep;
    const line = dialog.querySelector("[data-option]");
    line.hidden = !option;
    line.querySelector("span").textContent = option;
    line.querySelector("input").checked = false;
    this.confirmed = act;
    open(dialog);
  }

  picture(title, source) {
    const dialog = byId("dialog-picture");
    dialog.querySelector("h2").textContent = title;
    const image = dialog.querySelector("[data-picture]");
    image.src = source;
    image.alt = title;
    open(dialog);
  }

  setUpToken() {
    const dialog = byId("dialog-token");
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    let asked = null;
    onToken(() => {
      asked ??= new Promise((resolve) => {
        open(dialog);
        dialog.addEventListener("close", () => {
          asked = null;
          resolve(true);
        }, { once: true });
      });
      return asked;
    });
    handle(dialog, async (form) => {
      await openSession(form.elements.token.value.trim());
      form.reset();
      dialog.close();
    });
  }
}

function open(dialog) {
  if (dialog.open) return;
  const problem = dialog.querySelector(".problem");
  if (problem) problem.hidden = true;
  dialog.showModal();
}

/** Do `act` when the form is sent; a refusal is told in the dialog. */
function handle(dialog, act) {
  const form = dialog.querySelector("form");
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    attempt(form, form.querySelector("[type=submit]"), () => act(form));
  });
}

async function attempt(form, button, act) {
  const line = form.querySelector(".problem");
  line.hidden = true;
  button.disabled = true;
  try {
    await act();
  } catch (problem) {
    line.textContent = problem.message;
    line.hidden = false;
  } finally {
    button.disabled = false;
  }
}

function fillSelect(select, values, chosen = "") {
  const kept = chosen || select.value;
  select.replaceChildren(...values.map((value) => el("option", { value }, value)));
  if (values.includes(kept)) select.value = kept;
}
