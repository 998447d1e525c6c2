// @ts-check
// What the view asks of the main host.
/** @import { Page, View } from "../types.mjs" */

import { ApiError, eventsOf } from "../api.mjs";

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

/** @param {Page} page */
async function newCode(page) {
  page.dispatch("devices/join-set", { code: null });
  const answer = await page.ask("join", page.api.joinCode());
  if (answer) page.dispatch("devices/join-set", { code: answer.value });
}

/**
 * Follow a measurement to its end. Who leaves ends it.
 * @param {Page} page @param {string} id
 */
async function measured(page, id) {
  page.dispatch("devices/step", { id, step: "begins" });
  const response = await page.api.measureDevice(id);
  try {
    for await (const { type, data } of eventsOf(response)) {
      const body = JSON.parse(data);
      if (type === "progress") page.dispatch("devices/step", { ...body, id });
      if (type === "problem") throw new ApiError(body.code, body.detail, body.status);
      if (type === "result") return body;
    }
  } catch (error) {
    if (error instanceof ApiError) throw error;
  }
  throw new ApiError("unreachable", "The connection broke while it was measured; measure again.");
}
