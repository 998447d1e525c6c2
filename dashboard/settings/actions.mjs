// @ts-check
/** @import { Page, State } from "../types.mjs" */
/** @import { Change } from "./state.mjs" */

import { resultOf } from "../api.mjs";
import { installedWords, isHere, isOver, keyWanted, may } from "./state.mjs";

/** @param {Page} page */
async function loadKeys(page) {
  const answer = await page.ask("keys", page.api.keys());
  if (answer) page.dispatch("settings/keys", { keys: answer.value });
}

/** @param {Page} page */
async function loadEngines(page) {
  const answer = await page.ask("engines", page.api.engines());
  if (answer) page.dispatch("settings/shelf", { builds: answer.value });
}

/** The change that is under way, or was last; events tell how it goes on. @param {Page} page */
async function loadChange(page) {
  const answer = await page.ask("engine-seen", page.api.engineChange());
  if (answer) page.dispatch("settings/change", { change: answer.value });
}

/** @param {Page} page @param {string} build "" for the newest release */
async function install(page, build) {
  page.dispatch("settings/install", { build, since_ms: page.now_ms() });
  const tell = (/** @type {any} */ step) => page.dispatch("settings/install-step", step);
  const answer = await page.ask("engine-install", page.api.installEngine(build).then((response) =>
    resultOf(response, tell, "The connection broke; what was fetched is kept: install it again.")));
  if (answer) {
    const said = installedWords(answer.value);
    page.dispatch("settings/installed", { said });
    page.dispatch("announce", { text: said[0] });
  }
  await loadEngines(page);
}

/** How it goes on, events tell. @param {Page} page @param {string} build */
async function use(page, build) {
  const begun = page.api.useEngine(build).then((response) =>
    resultOf(response, () => {}, "The connection broke; the change goes on without this page."));
  if (await page.ask("engine-change", begun)) page.dispatch("announce", { text: `All use ${build} now.` });
}

/** @param {Page} page @param {State} before @param {State} after */
export async function effect(page, before, after) {
  const [old, change] = [before.views.settings.change, after.views.settings.change];
  if (old !== change) followChange(page, old, change);
  if (!isHere(after) || isHere(before)) return;
  if (may(after, "admin")) loadKeys(page);
  loadEngines(page);
  loadChange(page);
  const answer = await page.ask("settings", page.api.settings());
  if (answer) page.dispatch("settings/all", answer.value);
}

/** The main host's own engine is told by snapshots only. @param {Page} page @param {Change | null} old @param {Change | null} change */
function followChange(page, old, change) {
  if (!old || !change || old.phase === change.phase) return;
  if (change.phase === "launching" || isOver(change)) page.connect();
  if (isOver(change) && isHere(page.state())) loadEngines(page);
}

/** @type {Record<string, (page: Page, element: any, data: DOMStringMap, event: any) => unknown>} */
export const settingsActions = {
  async "settings/sign-out"(page) {
    if (await page.ask("sign-out", page.api.signOut())) page.signedOut();
  },
  "settings/install-engine": (page, element) => install(page, element.matches("form") ? String(new FormData(element).get("build")).trim() : ""),
  "settings/ask-use": (page, _, { build }) => page.dispatch("settings/ask-use", { build }),
  "settings/asked-use": (page) => page.dispatch("settings/ask-use", { build: "" }),
  "settings/use-engine"(page, button, { build = "" }) {
    button.closest("dialog").close();
    return use(page, build);
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
