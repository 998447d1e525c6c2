// @ts-check
import assert from "node:assert/strict";
import { test } from "node:test";

import { effect } from "../../dashboard/settings/actions.mjs";
import { found, initial, keyWanted, limitsText, reduce, valueText } from "../../dashboard/settings/state.mjs";
import { render } from "../../dashboard/settings/view.mjs";

const NOW_MS = Date.parse("2026-01-01T01:00:00Z");
const ALL = [
  { name: "port", value: 9000, default: 8100, source: "file", description: "port of dashboard" },
  { name: "model_folders", value: [], default: [], source: "default", description: "folders whose models are offered" },
  { name: "stall_s", value: 120, default: 120, source: "environment", description: "a load without progress" },
];
const KEY = { name: "alice", shown: "sk-7Qm2", scopes: ["inference", "read"], requests_per_minute: 60, concurrent: null, wait_s: 0.5, requests: 1204, prompt_tokens: 10, generated_tokens: 20, last_used_at: "2026-01-01T00:00:00Z" };
const ADMIN = { caller: "local", scopes: ["inference", "read", "admin"], is_keyless: true };
/** @param {any} node @returns {string} */
const words = (node) => (typeof node === "string" ? node : !node || typeof node !== "object" ? "" : Array.isArray(node) ? node.map(words).join(" ")
  : "make" in node ? words(node.make()) : node.children.map(words).join(" "));
/** @param {object} own @param {object} [more] @returns {any} */
const state = (own, more) => ({
  route: { view: "settings", parts: [] }, connection: "connected", who: ADMIN, asks: {}, copied: "",
  host: { url: "http://desk:8100", main_host: "desk", version: "0.1.0", engine: { version: "1", build: "b1", rpc_protocol: "7.0.0", problem: "" } },
  views: { settings: { ...initial, keys: [KEY], all: ALL, path: "/s.toml", ...own } }, ...more,
});
/** @param {object} own @param {object} [more] */
const page = (own, more) => words(render(state(own, more), NOW_MS));

test("settings: those that differ come first, and the filter wants all words", () => {
  assert.deepEqual(found(ALL, "").changed.map(({ name }) => name), ["port"]);
  assert.deepEqual(found(ALL, "").others.map(({ name }) => name), ["model_folders", "stall_s"]);
  assert.deepEqual(found(ALL, "Folders  offered").others.map(({ name }) => name), ["model_folders"]);
  assert.deepEqual(found(ALL, "folders port"), { changed: [], others: [] });
  assert.match(page({}), /\/s\.toml.*Not as by default.*port.*9000.*by default 8100.*As by default \(2\)/s);
  assert.match(page({ filter: "zzz" }), /No setting has these words/);
});

test("values and limits as words", () => {
  assert.deepEqual([null, "", [], ["a", "b"], true, 0, { a: 1 }, "x"].map(valueText), ["none", "empty", "none", "a, b", "true", "0", '{"a":1}', "x"]);
  assert.equal(limitsText(KEY), "60 a minute, waits 0.5 s");
  assert.equal(limitsText({ requests_per_minute: null, concurrent: null, wait_s: null }), "none");
});

test("the form of a key: an empty limit is none", () => {
  const form = new FormData();
  for (const [name, value] of [["name", " bob "], ["scopes", "inference"], ["scopes", "read"], ["requests_per_minute", ""], ["concurrent", "4"], ["wait_s", "0"]]) form.append(name, value);
  assert.deepEqual(keyWanted(form), { name: "bob", scopes: ["inference", "read"], requests_per_minute: null, concurrent: 4, wait_s: 0 });
});

test("a new key's text is shown once", () => {
  const made = reduce({ ...initial, dialog: "new" }, { type: "settings/made", data: { name: "bob", text: "sk-secret" } });
  assert.match(page(made), /Copy it now.*sk-secret.*OPENAI_API_KEY=sk-secret/s);
  const closed = reduce(made, { type: "settings/dialog", data: { dialog: "" } });
  assert.equal(JSON.stringify(closed).includes("sk-secret"), false);
  assert.equal(JSON.stringify(reduce(made, { type: "key_required", data: {} })).includes("sk-secret"), false);
});

test("keys are listed with their use", () => {
  assert.match(page({}), /alice.*sk-7Qm2….*inference, read.*60 a minute.*1,204 requests.*1 h ago/s);
  assert.match(page({ keys: [{ ...KEY, requests: 0, last_used_at: "" }] }), /nothing yet.*never/s);
  assert.match(page({ keys: [] }), /There is none yet/);
  assert.match(page({ dialog: "revoke", revoking: "alice" }), /Revoke alice\?.*Keep it/s);
});

test("who may less is told so", () => {
  assert.match(page({}), /no key is needed/);
  assert.doesNotMatch(page({}), /Sign out/);
  const reader = { who: { caller: "carol", scopes: ["read"], is_keyless: false } };
  const text = page({ keys: null }, reader);
  assert.match(text, /Signed in with the key.*carol.*Sign out/s);
  assert.match(text, /cannot see or make keys/);
  assert.doesNotMatch(text, /Make a key/);
  assert.match(page({ keys: null, all: null }, { who: null, asks: { settings: { busy: false, error: "no such route" } } }), /no such route/);
});

test("it is read when the view is opened by somebody known; keys only by those who may", async () => {
  /** @type {string[]} */
  const asked = [];
  const fake = /** @type {any} */ ({
    api: { keys: () => asked.push("keys"), settings: () => asked.push("settings") },
    ask: async () => null, dispatch() {},
  });
  const unknown = state({}, { who: null });
  await effect(fake, unknown, state({}));
  assert.deepEqual(asked.splice(0), ["keys", "settings"]);
  await effect(fake, state({}), state({ filter: "x" }));
  await effect(fake, state({}, { route: { view: "chat", parts: [] } }), state({}, { connection: "disconnected" }));
  assert.deepEqual(asked, []);
  await effect(fake, unknown, state({}, { who: { caller: "carol", scopes: ["read"], is_keyless: false } }));
  assert.deepEqual(asked, ["settings"]);
});
