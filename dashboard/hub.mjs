// @ts-check
// Looking for a model on the hub, as the views that offer it share it.
/** @import { FoundRepo, Page } from "./types.mjs" */

import { h } from "./dom.mjs";
import { age, plural, secondsSince } from "./format.mjs";

const SEARCH_DEBOUNCE_MS = 400;

/** @param {string} id @param {string} label @param {string} action @param {string} value @param {string} placeholder */
export const searchField = (id, label, action, value, placeholder) => [
  h("label", { for: id, class: "hidden-text" }, label),
  h("input", { id, type: "search", "data-input": action, value, placeholder, autocomplete: "off", spellcheck: "false" }),
];

/**
 * One row of a list to choose from.
 * @param {string} action @param {Record<string, string>} data @param {string} title @param {string} figure @param {string} [note]
 */
export const option = (action, data, title, figure, note) => h("li", { key: Object.values(data).join() },
  h("button", { type: "button", class: "launch-option", "data-action": action, ...data },
    h("span", null, title, note && h("small", null, note)), h("span", { class: "figure" }, figure)));

/** What was found; `action` is told each `data-repo`. @param {FoundRepo[]} repos @param {string} action @param {number} now_ms */
export function reposView(repos, action, now_ms) {
  if (!repos.length) return h("p", { class: "hint" }, "Nothing was found.");
  return h("ul", { class: "launch-options" }, repos.map(({ repo, downloads, likes, updated_at, is_gated }) => {
    const seconds = secondsSince(updated_at, now_ms);
    const notes = [is_gated && "asks for its terms to be accepted", plural(likes, "like"), seconds !== null && `${age(seconds)} ago`];
    const figure = `${downloads.toLocaleString("en", { notation: "compact" })} downloads`;
    return option(action, { "data-repo": repo }, repo, figure, notes.filter(Boolean).join(" · "));
  }));
}

/** Ask the hub a moment after the last letter; the answer is dispatched as "VIEW/found". @param {string} view */
export function searching(view) {
  let timer = 0;
  return (/** @type {Page} */ page, /** @type {string} */ text) => {
    clearTimeout(timer);
    if (!text) return;
    timer = setTimeout(async () => {
      const answer = await page.ask(`${view}/hub`, page.api.search(text));
      if (answer) page.dispatch(`${view}/found`, { text, repos: answer.value });
    }, SEARCH_DEBOUNCE_MS);
  };
}
