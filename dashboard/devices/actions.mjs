// @ts-check
// What the view asks of the main host.
/** @import { Checked, Page, View } from "../types.mjs" */

import { resultOf } from "../api.mjs";
import { countWords } from "./findings.mjs";

/** @param {Page} page @param {string} id @param {Promise<any>} answer */
const asked = (page, id, answer) => page.ask(`device ${id}`, answer);

/** The form goes; what it was opened in takes the focus. @param {Element} element */
const leave = (element) => element.closest("details")?.querySelector("summary")?.focus();

/** @type {View["actions"]} */
export const actions = {
  "devices/open": (page, element, { id }) => page.dispatch("devices/open", { id, open: element.open }),
  "devices/filter": (page, element) => page.dispatch("devices/set", { filter: element.value }),
  "devices/only": (page, _, { word }) => page.dispatch("devices/set", { only: word === page.state().views.devices.only ? "" : word }),

  "devices/exclude": (page, _, { id = "" }) => asked(page, id, page.api.changeDevice(id, { excluded: true })),
  "devices/include": (page, _, { id = "" }) => asked(page, id, page.api.changeDevice(id, { excluded: false })),
  "devices/drain": (page, _, { id = "" }) => asked(page, id, page.api.drainDevice(id)),
  async "devices/measure"(page, _, { id = "" }) {
    const done = await asked(page, id, measured(page, id));
    page.dispatch("devices/step", { id });
    if (done) page.dispatch("announce", { text: `${page.state().devices[id]?.name ?? "The device"} was measured.` });
  },

  async "devices/wire"(page, _, { id = "", wire = "" }) {
    if (!await asked(page, id, page.api.changeDevice(id, { wire }))) return;
    page.dispatch("announce", { text: wire ? `${wire} is chosen.` : "The fastest network is chosen." });
  },
  async "devices/check"(page, button, { id = "" }) {
    const details = button.closest("article, li")?.querySelector("details");
    if (id && details) details.open = true; // there the answer is shown
    await check(page, id);
  },
  "devices/check-close": (page, _, { key }) => page.dispatch("devices/check-closed", { key }),

  "devices/rename"(page, button, { id }) {
    if (!id) leave(button);
    page.dispatch("devices/set", { renaming: id });
  },
  async "devices/rename-to"(page, form, { id = "" }) {
    const name = String(new FormData(form).get("name")).trim();
    if (!await asked(page, id, page.api.changeDevice(id, { name }))) return;
    leave(form);
    page.dispatch("devices/set", { renaming: "" });
  },
  "devices/remove": (page, _, { id }) => page.dispatch("devices/set", { removing: id }),
  "devices/remove-closed": (page) => page.dispatch("devices/set", { removing: "" }),
  "devices/remove-now"(page, button, { id = "" }) {
    button.closest("dialog").close();
    return asked(page, id, page.api.removeDevice(id));
  },

  "devices/add"(page) {
    page.dispatch("devices/join", { tab: /Mac/.test(navigator.platform) ? "macos" : "termux" });
    return newCode(page);
  },
  "devices/code": (page) => newCode(page),
  "devices/tab": (page, _, { tab }) => page.dispatch("devices/join-set", { tab }),
  "devices/another": (page) => page.dispatch("devices/another"),
  "devices/joined": (page) => page.dispatch("devices/set", { join: null }),
};

/** Ask the doctor about a device, or about all. @param {Page} page @param {string} id "" for all */
async function check(page, id) {
  const key = id || "all";
  const since_ms = page.now_ms();
  page.dispatch("devices/check", { key, since_ms });
  const answer = await page.ask(`check ${key}`, page.api.check(page.state().devices[id]?.name));
  page.dispatch("devices/checked", { key, since_ms, results: answer?.value });
  if (!answer) return;
  const findings = answer.value.flatMap((/** @type {Checked} */ each) => each.findings);
  page.dispatch("announce", { text: `Checked: ${countWords(findings)}.` });
}

/** @param {Page} page */
async function newCode(page) {
  page.dispatch("devices/join-set", { code: null });
  const answer = await page.ask("join", page.api.joinCode());
  if (answer) page.dispatch("devices/join-set", { code: answer.value });
}

/** @param {Page} page @param {string} id */
async function measured(page, id) {
  page.dispatch("devices/step", { id, step: "begins" });
  const response = await page.api.measureDevice(id);
  const tell = (/** @type {object} */ progress) => page.dispatch("devices/step", { ...progress, id });
  return resultOf(response, tell, "The connection broke while it was measured; measure again.");
}
