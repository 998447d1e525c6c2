// @ts-check
import assert from "node:assert/strict";
import { test } from "node:test";

import { effect } from "../../dashboard/settings/actions.mjs";
import { installWords, variantOf } from "../../dashboard/settings/engines.mjs";
import { found, initial, installedWords, keyWanted, limitsText, reduce, valueText } from "../../dashboard/settings/state.mjs";
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
  route: { view: "settings", parts: [] }, connection: "connected", who: ADMIN, asks: {}, copied: "", deployments: {},
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
    api: { keys: () => asked.push("keys"), settings: () => asked.push("settings"), engines: () => asked.push("engines"), engineChange: () => asked.push("change") },
    ask: async () => null, dispatch() {},
  });
  const unknown = state({}, { who: null });
  await effect(fake, unknown, state({}));
  assert.deepEqual(asked.splice(0), ["keys", "engines", "change", "settings"]);
  await effect(fake, state({}), state({ filter: "x" }));
  await effect(fake, state({}, { route: { view: "chat", parts: [] } }), state({}, { connection: "disconnected" }));
  assert.deepEqual(asked, []);
  await effect(fake, unknown, state({}, { who: { caller: "carol", scopes: ["read"], is_keyless: false } }));
  assert.deepEqual(asked, ["engines", "change", "settings"]);
});

// Engines.

const ARCHIVE = { variant: "android-arm64", size_bytes: 88 * 1024 ** 2, sha256: "0123456789abcdef", is_verified: true };
const BUILD = { build: "b10603", commit: "5d2e8f1", is_release: true, runs_here: true, on_main_host: false, devices: [], archives: [ARCHIVE] };
const USED = { ...BUILD, build: "b10516", on_main_host: true, devices: ["mac", "pixel"] };
const CHANGE = {
  build_before: "b10516", build: "b10603", phase: "fetching", deployments: { chat: "ready" }, started_at: "2026-01-01T00:59:30Z", ended_at: "", error_code: "", reason: "",
  devices: [{ device: "mac", state: "ready", done_bytes: 0, total_bytes: 0, detail: "" }, { device: "pixel", state: "fetching", done_bytes: 44 * 1024 ** 2, total_bytes: 88 * 1024 ** 2, detail: "" }],
};
const STEP = { step: "fetching", build: "b10603", archive: "llama-b10603-bin-android-arm64.tar.gz", done_bytes: 44 * 1024 ** 2, total_bytes: 88 * 1024 ** 2, bytes_per_s: 11 * 1024 ** 2, eta_s: 4 };
/** @param {any} own @param {...[string, any]} events */
const after = (own, ...events) => events.reduce((held, [type, data]) => reduce(held, { type, data }), { ...initial, keys: [KEY], all: ALL, shelf: [BUILD, USED], ...own });

test("engines: which one is in use, on whom, and what can be used", () => {
  const text = page({ shelf: [BUILD, USED, { ...BUILD, build: "b9", runs_here: false }] });
  assert.match(text, /b10603.*release · 5d2e8f1.*Use this build.*1 archive, 88 MiB.*android-arm64.*0123456789ab….*b10516.*in use.*On mac, pixel\..*b9.*no programs for this main host/s);
  assert.equal(text.match(/Use this build/g)?.length, 1, "neither the one in use nor one that cannot run here");
  assert.match(page({ shelf: [{ ...BUILD, archives: [{ ...ARCHIVE, is_verified: false }] }] }), /no digest to compare/);
  assert.match(page({ shelf: [] }), /None is kept yet.*Install it/s);
  const reader = { who: { caller: "carol", scopes: ["read"], is_keyless: false } };
  assert.doesNotMatch(page({ shelf: [BUILD] }, reader), /Install|Use this build/);
  assert.match(page({}, { asks: { engines: { busy: false, error: "no such route" } } }), /no such route/, "of an older supervisor");
});

test("an installation is told archive by archive, then what came of it", () => {
  const busy = { asks: { "engine-install": { busy: true, error: "" } } };
  const begun = after({}, ["settings/install", { build: "", since_ms: NOW_MS - 14_000 }], ["settings/install-step", { ...STEP, archive: "llama-b10603-bin-macos-arm64.tar.gz" }], ["settings/install-step", STEP]);
  assert.match(page(begun, busy), /Installing the newest release….*14 s so far.*macos-arm64.*is there.*android-arm64.*44 MiB of 88 MiB · 11 MiB\/s · 4\.0 s left/s);
  assert.equal(installWords({ ...STEP, step: "proving" }), "is checked and tried out");
  assert.equal(variantOf("cudart-llama-b1-bin-ubuntu-cuda-12.8-x64.tar.gz"), "ubuntu-cuda-12.8-x64, its CUDA libraries");
  assert.equal(variantOf("something.else"), "something.else");
  const said = installedWords(/** @type {any} */ ({ build: "b10603", fetched: [ARCHIVE], present: ["macos-arm64"], notes: ["nothing of it suits tablet"] }));
  assert.deepEqual(said, ["b10603 is on the shelf: android-arm64.", "There already: macos-arm64.", "Nothing of it suits tablet."]);
  assert.match(page(after(begun, ["settings/installed", { said }])), /b10603 is on the shelf/);
  assert.equal(after({}, ["settings/install-step", STEP]).install, null, "of what nobody here began");
});

test("a change of the engine is told device by device, and how it ended", () => {
  const running = page({ shelf: [BUILD, USED], change: CHANGE });
  assert.match(running, /Changing from b10516 to b10603….*30 s so far.*goes on as it is.*mac.*has it.*pixel.*44 MiB of 88 MiB.*chat.*ready/s);
  assert.match(page({ change: { ...CHANGE, phase: "going back", reason: "it does not work on mac" } }), /all go back to b10516.*It does not work on mac\./s);
  assert.match(page(after({}, ["engine_change", { ...CHANGE, phase: "done" }])), /All use b10603 now, instead of b10516/);
  const failed = page({ change: { ...CHANGE, phase: "failed", reason: "it was given up" } }, { asks: { "engine-change": { busy: false, error: "it was given up" } } });
  assert.match(failed, /The change from b10516 to b10603 failed\..*It was given up\./s);
  assert.equal(failed.match(/was given up/g)?.length, 1, "once");
  assert.match(page({}, { asks: { "engine-change": { busy: false, error: "a setting says which" } } }), /a setting says which/);
  assert.match(page({ asking: "b10603" }, { deployments: { chat: { state: "ready" }, old: { state: "stopped" } } }), /Use b10603\?.*the deployment stops, and requests wait.*go back/s);
});

test("when the engine has changed, the snapshot is read anew, and the shelf where it is seen", () => {
  /** @type {string[]} */
  const asked = [];
  const own = (/** @type {any} */ change) => state({ change });
  const fake = /** @type {any} */ ({
    api: { engines: () => asked.push("engines") }, ask: async () => null, connect: () => asked.push("connect"), state: () => own(null),
  });
  const phases = ["fetching", "stopping", "switching", "launching", "done"].map((phase) => own({ ...CHANGE, phase }));
  phases.slice(1).forEach((each, index) => effect(fake, phases[index], each));
  assert.deepEqual(asked.splice(0), ["connect", "connect", "engines"]);
  effect(fake, own(null), own({ ...CHANGE, phase: "done" }));
  assert.deepEqual(asked, [], "it was over when this page came");
});
