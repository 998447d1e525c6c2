// @ts-check
/** @import { Page, State } from "../types.mjs" */

import { isHere, keyWanted, may } from "./state.mjs";

/** @param {Page} page */
async function loadKeys(page) {
  const answer = await page.ask("keys", page.api.keys());
  if (answer) page.dispatch("settings/keys", { keys: answer.value });
}

/** @param {Page} page @param {State} before @param {State} after */
export async function effect(page, before, after) {
  if (!isHere(after) || isHere(before)) return;
  if (may(after, "admin")) loadKeys(page);
  const answer = await page.ask("settings", page.api.settings());
  if (answer) page.dispatch("settings/all", answer.value);
}

/** @type {Record<string, (page: Page, element: any, data: DOMStringMap, event: any) => unknown>} */
export const settingsActions = {
  async "settings/sign-out"(page) {
    if (await page.ask("sign-out", page.api.signOut())) page.signedOut();
  },
  "settings/filter": (page, field) => page.dispatch("settings/filter", { text: field.value }),
  "settings/dialog": (page, _, { dialog, name }) => page.dispatch("settings/dialog", { dialog, name }),
  "settings/closed": (page) => page.dispatch("settings/dialog", { dialog: "" }),
  async "settings/make"(page, form) {
    const wanted = keyWanted(new FormData(form));
    const answer = await page.ask("make-key", page.api.makeKey(wanted));
    if (!answer) return;
    page.dispatch("settings/made", { name: wanted.name, text: answer.value.text });
    await loadKeys(page);
  },
  async "settings/revoke"(page, button, { name = "" }) {
    if (!await page.ask("revoke-key", page.api.revokeKey(name))) return;
    button.closest("dialog").close();
    page.dispatch("announce", { text: `${name} was revoked.` });
    await loadKeys(page);
  },
};
