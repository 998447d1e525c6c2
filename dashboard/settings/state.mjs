// @ts-check
/** @import { State } from "../types.mjs" */

/**
 * @typedef {{name: string, shown: string, scopes: string[], requests_per_minute: number | null, concurrent: number | null,
 *   wait_s: number | null, requests: number, prompt_tokens: number, generated_tokens: number, last_used_at: string}} Key
 * @typedef {{name: string, value: any, default: any, source: string, description: string}} Setting
 * @typedef {{keys: Key[] | null, made: {name: string, text: string} | null, dialog: string, revoking: string,
 *   path: string, all: Setting[] | null, filter: string}} Settings `dialog`: "", "new" or "revoke"
 */

/** @type {Settings} */
export const initial = { keys: null, made: null, dialog: "", revoking: "", path: "", all: null, filter: "" };

/** @param {Settings} own @param {{type: string, data: any}} event @returns {Settings} */
export function reduce(own, { type, data }) {
  switch (type) {
    case "settings/keys": return { ...own, keys: data.keys };
    case "settings/all": return { ...own, path: data.path, all: data.settings };
    case "settings/filter": return { ...own, filter: data.text };
    case "settings/dialog": return { ...own, dialog: data.dialog, revoking: data.name ?? "", made: null }; // its text goes with it
    case "settings/made": return { ...own, made: data };
    case "key_required": return initial;
    default: return own;
  }
}

/** Whether the view is seen by somebody that is known. @param {State} state */
export const isHere = ({ route, connection, who }) => route.view === "settings" && connection === "connected" && who !== null;

/** @param {State} state @param {string} scope */
export const may = ({ who }, scope) => Boolean(who?.scopes.includes(scope));

/** @param {Setting} setting */
export const isChanged = (setting) => JSON.stringify(setting.value) !== JSON.stringify(setting.default);

/** Those with all words of the filter: the changed ones, and the others. @param {Setting[]} all @param {string} filter */
export function found(all, filter) {
  const words = filter.toLowerCase().split(/\s+/);
  const text = (/** @type {Setting} */ { name, description }) => `${name} ${description}`.toLowerCase();
  const hits = all.filter((setting) => words.every((word) => text(setting).includes(word)));
  return { changed: hits.filter(isChanged), others: hits.filter((setting) => !isChanged(setting)) };
}

/** @param {any} value */
export function valueText(value) {
  if (value === null) return "none";
  if (value === "") return "empty";
  if (Array.isArray(value)) return value.join(", ") || "none";
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

/** @param {Pick<Key, "requests_per_minute" | "concurrent" | "wait_s">} key */
export const limitsText = ({ requests_per_minute, concurrent, wait_s }) => [
  requests_per_minute !== null && `${requests_per_minute} a minute`,
  concurrent !== null && `${concurrent} at a time`,
  wait_s !== null && `waits ${wait_s} s`,
].filter(Boolean).join(", ") || "none";

/** @param {Key} key */
export function usageText({ requests, prompt_tokens, generated_tokens }) {
  const [all, read, made] = [requests, prompt_tokens, generated_tokens].map((count) => count.toLocaleString("en"));
  return requests ? `${all} requests, ${read} tokens in, ${made} out` : "nothing yet";
}

/** What the form asks for; an empty field is no limit. @param {FormData} form */
export function keyWanted(form) {
  const amount = (/** @type {string} */ name) => (form.get(name) ? Number(form.get(name)) : null);
  return {
    name: String(form.get("name")).trim(), scopes: form.getAll("scopes"),
    requests_per_minute: amount("requests_per_minute"), concurrent: amount("concurrent"), wait_s: amount("wait_s"),
  };
}
