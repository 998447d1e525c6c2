// @ts-check
// Pieces that the parts of the models view share.
/** @import { Fit, Model } from "../types.mjs" */
/** @import { Own } from "./state.mjs" */

import { h } from "../dom.mjs";
import { badge } from "../parts.mjs";
import { fitWords, shortWords, tokens } from "./state.mjs";

const CONTEXTS = [2048, 4096, 8192, 16_384, 32_768, 65_536, 131_072];

/** @param {string} action @param {any} words @param {object} [more] */
export const button = (action, words, more) => h("button", { type: "button", "data-action": action, ...more }, words);

/** For those that only hear it: of what. @param {string} name */
export const of = (name) => h("span", { class: "hidden-text" }, ` ${name}`);

/** @param {string} model its path or reference @param {string} name */
export const launchButton = (model, name) => button("models/launch", ["Launch", of(name)], { key: "launch", "data-model": model });

/** @param {Model} model */
export const stem = ({ name }) => name.replace(/(-\d{5}-of-\d{5})?\.gguf$/i, "");

/** Of how much context fits and suggestions speak. @param {Own} own */
export const contextField = ({ ctx }) => h("div", { class: "field" },
  h("label", { for: "models-ctx" }, "For a context of"),
  h("select", { id: "models-ctx", "data-action": "models/ctx" },
    CONTEXTS.map((count) => h("option", { key: count, value: count, selected: count === ctx }, tokens(count)))));

/** @param {Fit} fit @param {...any} more */
export const fitLine = (fit, ...more) => h("p", { class: "model-fit" },
  badge(fit.fits ? "ok" : "stopped", fitWords(fit)), h("small", null, fit.fits ? fit.devices.join(", ") : shortWords(fit)),
  fit.fits && !fit.is_checked && !fit.is_estimate && h("small", null, "not checked by the engine"), more);
