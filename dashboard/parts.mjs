// @ts-check
// Pieces that several views share.
/** @import { Facts, State } from "./types.mjs" */

import { h } from "./dom.mjs";
import { bytes, memoryParts } from "./format.mjs";
import { ask } from "./state.mjs";

/** Colour of each state; the word is always beside it. @type {Record<string, string>} */
const TONES = {
  connecting: "busy", connected: "good", disconnected: "bad",
  ready: "good", installing: "busy", suspect: "warn", lost: "bad", unusable: "bad", incompatible: "bad",
  pending: "busy", fetching: "busy", starting: "busy", stopping: "busy",
  degraded: "warn", backoff: "warn", failed: "bad",
  ok: "good", warning: "warn", blocks: "bad",
};

/** @param {string} state */
export const tone = (state) => TONES[state] ?? "off";

/** @param {string} state @param {string} [words] */
export const badge = (state, words = state) => h("span", { class: `state ${tone(state)}` }, words);

/** A drawing of lines on 24 by 24; the words are beside it. @param {string} path */
export const icon = (path) => h("svg", { class: "icon", viewBox: "0 0 24 24", "aria-hidden": "true" }, h("path", { d: path }));

/** The head of a view: its title and what can be done. @param {string} title @param {...any} actions */
export const viewHead = (title, ...actions) => h("header", { class: "view-head" }, h("h2", { tabindex: -1 }, title), actions);

/** Names and values; rows without a value are left out. @param {[string, any][]} rows @param {string} kind */
export function factList(rows, kind = "") {
  return h("dl", { class: `facts ${kind}` }, rows.map(([name, value]) =>
    value && h("div", { key: name }, h("dt", null, name), h("dd", null, value))));
}

/** Why what was asked under `key` was refused. @param {State} state @param {string} key */
export function errorText(state, key) {
  const { error } = ask(state, key);
  return error && h("p", { key: `error ${key}`, class: "error", role: "alert" }, linked(error));
}

/** A text whose addresses can be followed. @param {string} text */
export const linked = (text) => text.split(/(https?:\/\/[^\s,;)"'”]*[^\s,;)"'”.:])/).map((part, index) =>
  (index % 2 ? h("a", { href: part, target: "_blank", rel: "noopener noreferrer" }, part) : part));

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

/** Who holds the memory of a host. @param {Facts} facts @param {number | null | undefined} resident_bytes */
export function memoryView(facts, resident_bytes) {
  const { total, ours, others, free } = memoryParts(facts, resident_bytes);
  /** @type {[string, string, number][]} */
  const parts = [["ours", "used by us", ours], ["others", "by others", others], ["free", "free", free]];
  return h("div", null,
    h("div", { class: "bar", "aria-hidden": "true" }, parts.map(([kind, , size]) => h("span", { class: kind, vars: { "--part": size } }))),
    h("ul", { class: "legend" }, parts.map(([kind, word, size]) =>
      size > 0 && h("li", { key: kind, class: kind }, `${bytes(size)} ${word}`)),
      h("li", { class: "total" }, `of ${bytes(total)}`)));
}

/**
 * Tabs, with the arrow keys of `tabKeys`; `action` is told each `data-tab`. The panel is what follows them.
 * @param {string} id @param {string} label @param {[string, string][]} all name and words @param {string} chosen
 * @param {string} action
 */
export function tabs(id, label, all, chosen, action) {
  return h("div", { class: "tabs", role: "tablist", "aria-label": label, "data-keydown": "tab-keys" }, all.map(([name, words]) =>
    h("button", {
      key: name, id: `${id}-${name}`, type: "button", role: "tab", "data-action": action, "data-tab": name,
      "aria-selected": String(name === chosen), "aria-controls": `${id}-panel`, tabindex: name === chosen ? 0 : -1,
    }, words)));
}

/** What the chosen tab shows. @param {string} id @param {string} chosen @param {...any} content */
export const tabPanel = (id, chosen, ...content) =>
  h("div", { key: chosen, id: `${id}-panel`, class: "panel", role: "tabpanel", "aria-labelledby": `${id}-${chosen}`, tabindex: 0 }, content);

/** The tab that a key leads to, or -1. @param {string} key @param {number} index @param {number} count */
export function tabAfter(key, index, count) {
  const moves = /** @type {Record<string, number>} */ ({ ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: count - 1 });
  return Object.hasOwn(moves, key) ? (moves[key] + count) % count : -1;
}

/**
 * A modal dialog that is shown as soon as it is there. `action` is told when it was closed, by Escape
 * too, and takes it out; a button with data-action "close" closes it.
 * @param {string} id @param {string} title @param {string} action @param {...any} content
 */
export function dialogView(id, title, action, ...content) {
  return h("dialog", { key: id, id, "data-modal": true, "data-close": action, "aria-labelledby": `${id}-title` },
    h("h2", { id: `${id}-title` }, title), content);
}
