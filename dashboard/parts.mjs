// @ts-check
// Pieces that several views share.
/** @import { State } from "./types.mjs" */

import { h } from "./dom.mjs";

/** Colour of each state; the word is always beside it. @type {Record<string, string>} */
const TONES = {
  connecting: "busy", connected: "good", disconnected: "bad",
  ready: "good", suspect: "warn", lost: "bad", unusable: "bad", incompatible: "bad",
  pending: "busy", fetching: "busy", starting: "busy", stopping: "busy",
  degraded: "warn", backoff: "warn", failed: "bad",
};

/** @param {string} state */
export const tone = (state) => TONES[state] ?? "off";

/** @param {string} state @param {string} [words] */
export const badge = (state, words = state) => h("span", { class: `state ${tone(state)}` }, words);

/** Names and values; rows without a value are left out. @param {[string, any][]} rows @param {string} kind */
export function factList(rows, kind = "") {
  return h("dl", { class: `facts ${kind}` }, rows.map(([name, value]) =>
    value && h("div", { key: name }, h("dt", null, name), h("dd", null, value))));
}

/**
 * A text with its copy button.
 * @param {State} state @param {string} key @param {string} label @param {string} text
 */
export function copyable(state, key, label, text) {
  return h("div", { key },
    h("div", { class: "row" }, h("span", { id: `${key}-label` }, label),
      h("button", { type: "button", "data-action": "copy", "data-key": key, "aria-describedby": `${key}-label` },
        state.copied === key ? "Copied" : "Copy")),
    h("pre", { id: key }, text));
}
