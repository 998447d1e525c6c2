// @ts-check
/** @import { State } from "../types.mjs" */

import { sentence } from "../format.mjs";

/**
 * @typedef {{variant: string, size_bytes: number, sha256: string, is_verified: boolean}} Archive
 * @typedef {{build: string, commit: string, is_release: boolean, runs_here: boolean, on_main_host: boolean, devices: string[],
 *   archives: Archive[]}} Build of llama.cpp, on the shelf
 * @typedef {{step: string, build: string, archive: string, done_bytes: number, total_bytes: number, bytes_per_s: number,
 *   eta_s: number | null}} Progress of an installation
 * @typedef {{build: string, steps: Record<string, Progress>, last: string, since_ms: number, said: string[]}} Install
 *   `steps`: the last of each archive, `last`: the archive that was told of last, `said`: what came of it
 * @typedef {{device: string, state: string, done_bytes: number, total_bytes: number, detail: string}} DeviceChange
 * @typedef {{build_before: string, build: string, phase: string, devices: DeviceChange[], deployments: Record<string, string>,
 *   started_at: string, ended_at: string, error_code: string, reason: string}} Change of the engine that all run
 * @typedef {{name: string, shown: string, scopes: string[], requests_per_minute: number | null, concurrent: number | null,
 *   wait_s: number | null, requests: number, prompt_tokens: number, generated_tokens: number, last_used_at: string}} Key
 * @typedef {{name: string, value: any, default: any, source: string, description: string}} Setting
 * @typedef {{keys: Key[] | null, made: {name: string, text: string} | null, dialog: string, revoking: string,
 *   path: string, all: Setting[] | null, filter: string,
 *   shelf: Build[] | null, install: Install | null, change: Change | null, asking: string}} Settings `asking`: a build, whether to use it; `dialog`: "", "new" or "revoke"
 */

/** @type {Settings} */
export const initial = { keys: null, made: null, dialog: "", revoking: "", path: "", all: null, filter: "", shelf: null, install: null, change: null, asking: "" };

/** @param {Settings} own @param {{type: string, data: any}} event @returns {Settings} */
export function reduce(own, { type, data }) {
  switch (type) {
    case "settings/keys": return { ...own, keys: data.keys };
    case "settings/all": return { ...own, path: data.path, all: data.settings };
    case "settings/filter": return { ...own, filter: data.text };
    case "settings/dialog": return { ...own, dialog: data.dialog, revoking: data.name ?? "", made: null }; // its text goes with it
    case "settings/made": return { ...own, made: data };
    case "settings/shelf": return { ...own, shelf: data.builds };
    case "settings/install": return { ...own, install: { steps: {}, last: "", said: [], ...data } };
    case "settings/install-step": return installed(own, { steps: { ...own.install?.steps, [data.archive]: data }, last: data.archive });
    case "settings/installed": return installed(own, data);
    case "engine_change": return { ...own, change: data };
    case "settings/change": return { ...own, change: data.change };
    case "settings/ask-use": return { ...own, asking: data.build };
    case "key_required": return initial;
    default: return own;
  }
}

/** @param {Settings} own @param {Partial<Install>} more @returns {Settings} */
const installed = (own, more) => (own.install ? { ...own, install: { ...own.install, ...more } } : own);

/** @param {Change} change */
export const isOver = ({ phase }) => phase === "done" || phase === "failed";

/** What an installation came to, in sentences. @param {{build: string, fetched: Archive[], present: string[], notes: string[]}} result */
export function installedWords({ build, fetched, present, notes }) {
  const came = fetched.length ? `${build} is on the shelf: ${fetched.map(({ variant }) => variant).join(", ")}.` : `${build} was there already.`;
  return [came, fetched.length && present.length ? `There already: ${present.join(", ")}.` : "", ...notes.map((note) => sentence(note))].filter(Boolean);
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
