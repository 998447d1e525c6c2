// @ts-check
import assert from "node:assert/strict";
import { test } from "node:test";

import {
  curlLine, devicesOf, hueOf, loadRows, loadTotal, loadWords, medianFirstToken, phases, reasonLine, shownId, speedNow, stateWords, story,
  timeRows,
} from "../../dashboard/deployments/facts.mjs";
import { deployments } from "../../dashboard/deployments/index.mjs";
import { sentence } from "../../dashboard/format.mjs";
import { initialState, reducer } from "../../dashboard/state.mjs";

const NOW = "2026-01-01T00:10:00Z";
const NOW_MS = Date.parse(NOW);
const GIB = 1024 ** 3;
/** @param {number} seconds before now */
const ago = (seconds) => new Date(NOW_MS - seconds * 1000).toISOString();

const plan = /** @type {any} */ ({
  model: { name: "Qwen", architecture: "qwen2", block_count: 10, size_bytes: 4 * GIB }, ctx_tokens: 4096, slots: 1, kv_type: "f16", ubatch: 512,
  shards: [
    { agent_id: "p", device: "phone", ggml_device: "CPU", layers: 3, has_output: false, weight_bytes: GIB, peak_bytes: GIB, available_bytes: 2 * GIB },
    { agent_id: "m", device: "mac", ggml_device: "MTL0", layers: 8, has_output: true, weight_bytes: 3 * GIB, peak_bytes: GIB, available_bytes: 8 * GIB },
  ],
  host: { layers: 0, has_output: false, peak_bytes: 0, available_bytes: GIB }, reasons: [], left_out: [],
  prediction: { decode_tokens_per_s: 10, prefill_tokens_per_s: 100, load_s: 60, prompt_tokens: 1000, users: 1, output_s: 0.01, is_guess: false,
    stages: [{ device: "phone", compute_s: 0.02, network_s: 0.01 }, { device: "mac/MTL0", compute_s: 0.03, network_s: 0.002 }] },
});
const cause = (/** @type {object} */ more = {}) => ({ code: "worker_killed", sentence: "the rpc-server of phone was killed", evidence: ["one", "two"],
  remedy: "find who did it", action: "retry", agent_id: "p", device: "phone", ...more });
/** @param {object} [more] @returns {any} */
const deployment = (more) => ({
  id: "qwen", spec: { model: "/m/qwen.gguf", name: "qwen", ctx_tokens: 4096, devices: [], split: [], slots: 1 }, state: "ready", reason: "",
  error_code: "", phase: "", since: ago(60), failures: 0, launch_id: 7, port: 8101, retry_at: "", plan, loads: [], links: [], timeline: [],
  tokens_per_second: 8, generated_tokens: 100, generated_s: 10, cause: null, warnings: [], slow: "", ...more,
});
const devices = /** @type {any} */ ({ p: { id: "p", name: "phone", state: "lost" }, m: { id: "m", name: "mac", state: "ready" } });
/** @param {object} [more] */
const told = (more) => story(deployment(more), devices, NOW_MS);

const reduce = reducer([deployments]);
/** @param {any} state @param {...[string, any?]} events */
const after = (state, ...events) => events.reduce((held, [type, data]) => reduce(held, { type, data, at_ms: NOW_MS }), state);
/** @param {any[]} rows @param {string[]} [parts] */
const world = (rows, parts = ["qwen"]) => after(initialState([deployments]), ["route", { view: "deployments", parts }], ["snapshot", {
  main_host: "desk", url: "http://desk:8100", time: NOW, devices: Object.values(devices), deployments: rows,
}]);
/** All text of a tree. @param {any} node @returns {string} */
function textOf(node) {
  if (Array.isArray(node)) return node.map(textOf).join(" ");
  if (node && node.make) return textOf(node.make());
  return node && typeof node === "object" ? textOf(node.children) : node || "";
}
/** @param {any} node @returns {any[]} every element of a tree */
function elements(node) {
  if (Array.isArray(node)) return node.flatMap(elements);
  if (node && node.make) return elements(node.make());
  return node && typeof node === "object" ? [node, ...elements(node.children)] : [];
}
/** @param {any} state */
const shown = (state) => deployments.render(state, NOW_MS);
/** @param {any} state */
const buttons = (state) => elements(shown(state)).filter(({ props }) => /^deployments\/(start|stop|relaunch|ask)/.test(props["data-action"] ?? ""))
  .map((node) => `${textOf(node)}${node.props.disabled ? " (busy)" : ""}`);

test("the deployment in the address is shown, else the only one", () => {
  assert.equal(shownId(world([deployment(), deployment({ id: "b" })], ["b"])), "b");
  assert.equal(shownId(world([deployment()], [])), "qwen");
  assert.equal(shownId(world([deployment(), deployment({ id: "b" })], [])), "");
  assert.equal(shownId(after(world([deployment()]), ["route", { view: "chat", parts: ["qwen"] }])), "");
});

test("the list leads on when it is empty", () => {
  const addresses = (/** @type {any} */ state) => elements(shown(state)).map(({ props }) => props.href).filter(Boolean);
  assert.deepEqual(addresses(world([], [])), ["#/launch"]);
  const alone = after(world([], []), ["device", { ...devices.m, state: "lost" }]);
  assert.deepEqual(addresses(alone), ["#/devices", "#/launch"]);
  assert.match(textOf(shown(world([], ["gone"]))), /There is no deployment “gone”/);
  assert.match(textOf(shown(after(initialState([deployments]), ["route", { view: "deployments", parts: [] }]))), /Waiting for the main host/);
});

test("a row of the list says state, speed, traffic and devices", () => {
  const state = after(world([deployment(), deployment({ id: "b", state: "failed", cause: cause() })], []),
    ["traffic", { deployment: "qwen", active: 1, waiting: 2, slots: 4 }]);
  const text = textOf(shown(state));
  assert.match(text, /ready for 1 min/);
  assert.match(text, /8\.0 tokens\/s · 1 of 4 slots busy · 2 waiting · phone, mac/);
  assert.match(text, /failed 1 min ago/);
  assert.match(text, /The rpc-server of phone was killed\./);
});

test("which buttons there are", () => {
  assert.deepEqual(buttons(world([deployment()])), ["Relaunch", "Stop"]);
  assert.deepEqual(buttons(world([deployment({ state: "backoff" })])), ["Launch now", "Stop"]);
  for (const state of ["stopped", "failed"]) assert.deepEqual(buttons(world([deployment({ state })])), ["Start", "Remove"]);
  assert.deepEqual(buttons(world([deployment({ state: "stopping", since: ago(2) })])), []);
  assert.deepEqual(buttons(world([deployment({ state: "stopping", since: ago(30) })])), ["Stop now"]);
  assert.deepEqual(buttons(after(world([deployment()]), ["ask", { key: "deployment qwen", busy: true }])), ["Relaunch (busy)", "Stop (busy)"]);
});

test("why something was refused stands at the buttons", () => {
  const state = after(world([deployment()]), ["ask", { key: "deployment qwen", error: "Not now." }]);
  assert.deepEqual(elements(shown(state)).filter(({ props }) => props.role === "alert").map(textOf), ["Not now."]);
});

test("removing is confirmed, and the question goes with the view", () => {
  const dialogs = (/** @type {any} */ state) => elements(shown(state)).filter(({ tag }) => tag === "dialog").length;
  const asked = after(world([deployment({ state: "failed" })]), ["deployments/confirm", { id: "qwen" }]);
  assert.equal(dialogs(asked), 1);
  assert.equal(dialogs(after(asked, ["deployments/confirm", { id: "" }])), 0);
  assert.equal(dialogs(after(asked, ["route", { view: "devices", parts: [] }], ["route", { view: "deployments", parts: ["qwen"] }])), 0);
});

test("what is shown in which state", () => {
  const time = { token_time: { at: NOW, tokens: 20, host_ms: 2, workers: [{ device: "phone", compute_ms: 20, wire_ms: 10 }] } };
  const loads = { loads: [{ device: "phone", layers: 3, weight_bytes: GIB, loaded_bytes: GIB / 2 }] };
  const ready = textOf(shown(world([deployment(time)])));
  for (const words of [/Tokens per second/, /Time to first token/, /Where the 32 ms of each token go/, /curl http:\/\/desk:8100/]) assert.match(ready, words);
  const starting = textOf(shown(world([deployment({ state: "starting", phase: "load", ...loads })])));
  assert.match(starting, /Loading the weights\./);
  assert.match(starting, /512 MiB of 1\.0 GiB/);
  assert.doesNotMatch(starting, /Tokens per second|What happened|curl/);
  assert.doesNotMatch(ready, /Loading the weights|What happened/);
  assert.match(textOf(shown(world([deployment({ state: "backoff", cause: cause() })]))), /What happened/);
  assert.doesNotMatch(textOf(shown(world([deployment({ launch_id: null })]))), /Logs/);
});

test("requests that wait for a launch are told", () => {
  const state = after(world([deployment({ state: "starting", phase: "load" })]), ["traffic", { deployment: "qwen", active: 0, waiting: 1, slots: 1 }]);
  assert.match(textOf(shown(state)), /1 request waits for it\. They are answered when it is ready\./);
});

test("words of a state", () => {
  assert.equal(stateWords(deployment(), NOW_MS), "ready for 1 min");
  assert.equal(stateWords(deployment({ state: "stopped" }), NOW_MS), "stopped 1 min ago");
  assert.equal(stateWords(deployment({ since: "" }), NOW_MS), "ready");
});

test("a text becomes a sentence, but names keep their letters", () => {
  assert.equal(sentence("the device is lost"), "The device is lost.");
  assert.equal(sentence("phone is lost", "phone"), "phone is lost.");
  assert.equal(sentence("llama-server ended"), "llama-server ended.");
  assert.equal(sentence("Who did it?"), "Who did it?");
  assert.equal(sentence(""), "");
});

test("one line for a reason: slow, cause, reason, meaning", () => {
  assert.equal(reasonLine(deployment()), "It answers requests.");
  assert.equal(reasonLine(deployment({ slow: "slow but alive: 1.00 instead of 5.00" })), "Slow but alive: 1.00 instead of 5.00.");
  assert.equal(reasonLine(deployment({ state: "backoff", cause: cause(), reason: "x" })), "The rpc-server of phone was killed.");
  assert.equal(reasonLine(deployment({ state: "starting", phase: "load" })), "Loading the weights.");
});

test("nothing is told while nothing is wrong", () => {
  for (const state of ["ready", "stopped", "stopping", "starting", "pending"]) assert.equal(told({ state }), null, state);
});

test("backoff: what, why, what now, and when", () => {
  const story = told({ state: "backoff", since: ago(26), retry_at: ago(-34), failures: 2, cause: cause(), reason: "the rpc-server of phone was killed; find who" });
  assert.equal(story?.what, "The rpc-server of phone was killed.");
  assert.equal(story?.countdown, "next launch in 34 s");
  assert.ok(Math.abs((story?.left ?? 0) - 34 / 60) < 0.001);
  assert.match(story?.now ?? "", /launched again by itself/);
  assert.equal(story?.remedy, "Find who did it.");
  assert.equal(story?.also, "");
  assert.deepEqual(story?.device, { id: "p", name: "phone", state: "lost" });
  assert.equal(story?.failures, "2 failures in a row");
  assert.deepEqual(story?.evidence, ["one", "two"]);
});

test("the countdown never shows nothing while there is something, and ends", () => {
  assert.equal(told({ state: "backoff", retry_at: ago(-0.4) })?.countdown, "next launch in 1 s");
  assert.equal(told({ state: "backoff", retry_at: ago(3) })?.countdown, "the next launch begins");
  assert.equal(told({ state: "backoff", retry_at: "" })?.left, 0);
});

test("what the next launch does differently", () => {
  const now = (/** @type {object} */ more) => told({ state: "backoff", cause: cause(more) })?.now ?? "";
  assert.match(now({ action: "smaller share" }), /a smaller share on phone/);
  assert.match(now({ action: "smaller ubatch" }), /fewer tokens computed at once/);
  assert.match(now({ action: "exclude" }), /without phone/);
  assert.match(now({ action: "something new" }), /launched again by itself/);
});

test("failed: whether anything more happens by itself", () => {
  assert.match(told({ state: "failed", cause: cause() })?.now ?? "", /nothing more happens by itself.*press Start/);
  assert.match(told({ state: "failed", cause: cause({ code: "insufficient_memory" }) })?.now ?? "", /launched again by itself as soon as/);
  assert.equal(told({ state: "failed" })?.what, "Nothing runs.");
});

test("degraded, slow, and starting again are told, too", () => {
  assert.match(told({ state: "degraded", reason: "a busy slot makes little progress" })?.what ?? "", /^A busy slot/);
  const slow = told({ slow: "slow but alive: 1.00 instead of 5.00 tokens per second" });
  assert.equal(slow?.title, "It is slower than usual");
  assert.equal(slow?.now, "It goes on answering.");
  assert.match(told({ state: "starting", failures: 2, cause: cause() })?.now ?? "", /attempt 3/);
  assert.match(told({ state: "pending", cause: cause(), reason: "no device is ready" })?.also ?? "", /No device is ready\./);
});

test("phases: done ones with their time, the running one counts up, the rest wait", () => {
  const timeline = [["planned", 0.5, 0.5], ["workers ready", 2, 1.5], ["verified", 3, 1], ["connected", 5, 2]]
    .map(([name, at_s, took_s]) => ({ name, at_s, took_s }));
  const list = phases(deployment({ state: "starting", phase: "load", since: ago(34.5), timeline }), NOW_MS);
  assert.deepEqual(list.map(({ label, took_s }) => [label, took_s]),
    [["Plan", 0.5], ["Workers", 1.5], ["Verify", 1], ["Connect", 2], ["Load", 30], ["First token", null]]);
  assert.deepEqual(list.map(({ isDone }) => isDone), [true, true, true, true, false, false]);
  assert.equal(list.find(({ isCurrent }) => isCurrent)?.what, "Loading the weights.");
});

test("phases of a plan without workers, and of a launch that is being planned", () => {
  const alone = phases(deployment({ state: "starting", phase: "connect", plan: { ...plan, shards: [] } }), NOW_MS);
  assert.deepEqual(alone.map(({ label }) => label), ["Plan", "Connect", "Load", "First token"]);
  const old = [{ name: "planned", at_s: 9, took_s: 9 }];
  const pending = phases(deployment({ state: "pending", since: ago(4), timeline: old }), NOW_MS);
  assert.deepEqual(pending.map(({ took_s }) => took_s), [4, null, null, null, null, null]);
});

const loading = () => loadRows(deployment({
  loads: [
    { device: "phone", layers: 3, weight_bytes: GIB, loaded_bytes: GIB / 2 },
    { device: "mac", layers: 8, weight_bytes: 3 * GIB, loaded_bytes: 3 * GIB },
    { device: "pc", layers: 8, weight_bytes: 2 * GIB, loaded_bytes: GIB },
  ],
  links: [
    { device: "phone", remaining_bytes: GIB / 2, bytes_per_s: GIB / 64, eta_s: 32, saved_bytes: GIB / 4 },
    { device: "mac", remaining_bytes: 0, bytes_per_s: GIB, eta_s: null, saved_bytes: 3 * GIB },
    { device: "pc", remaining_bytes: GIB, bytes_per_s: GIB / 8, eta_s: 8, saved_bytes: 0 },
  ],
}));

test("words of one worker's load", () => {
  assert.deepEqual(loading().map(loadWords), [
    "512 MiB of 1.0 GiB · 16 MiB/s · 32 s left · 256 MiB were there already",
    "3.0 GiB, all there · 3.0 GiB were there already",
    "1.0 GiB of 2.0 GiB · 128 MiB/s · 8.0 s left",
  ]);
});

test("the slowest worker decides how long all take", () => {
  const total = loadTotal(loading());
  assert.deepEqual([total.weight_bytes, total.loaded_bytes], [6 * GIB, 4.5 * GIB]);
  assert.equal(total.bytes_per_s, GIB / 64 + GIB / 8);
  assert.equal(total.eta_s, 32);
});

test("without a rate there is no time left", () => {
  assert.equal(loadTotal(loadRows(deployment({ loads: [{ device: "phone", layers: 3, weight_bytes: GIB, loaded_bytes: 0 }] }))).eta_s, null);
  assert.equal(loadTotal([]).eta_s, null);
});

test("a token's time beside what the plan expected", () => {
  const rows = timeRows({ at: NOW, tokens: 9, host_ms: 3, workers: [
    { device: "phone", compute_ms: 21, wire_ms: 90 }, { device: "mac", compute_ms: 41, wire_ms: 2 }, { device: "new", compute_ms: 5, wire_ms: 1 },
  ] }, plan);
  assert.deepEqual(rows.map(({ device, expected }) => [device, expected && Math.round(expected.compute_ms), expected && Math.round(expected.wire_ms)]),
    [["Main host", null, null], ["phone", 20, 10], ["mac", 40, 2], ["new", null, null]]);
  assert.deepEqual(rows.filter(({ isSlow }) => isSlow).map(({ device, factor, isWire }) => [device, factor?.toFixed(1), isWire]), [["phone", "3.7", true]]);
});

test("a plan for several users counts a token of each, and one without a prediction expects nothing", () => {
  const time = { at: NOW, tokens: 9, host_ms: 3, workers: [{ device: "phone", compute_ms: 5, wire_ms: 2 }] };
  const shared = { ...plan, prediction: { ...plan.prediction, users: 4 } };
  assert.equal(timeRows(time, shared)[1].expected?.compute_ms, 5);
  assert.equal(timeRows(time, { ...plan, prediction: null })[1].expected, null);
  assert.equal(timeRows(time, null)[1].isSlow, false);
});

test("the main host computes the output where the plan says so", () => {
  const own = { ...plan, host: { ...plan.host, has_output: true } };
  assert.equal(timeRows({ at: NOW, tokens: 9, host_ms: 3, workers: [] }, own)[0].expected?.compute_ms, 10);
});

test("readings are kept, once each, for one launch and not for ever", () => {
  const time = (/** @type {number} */ at) => ({ at: ago(-at), tokens: 9, host_ms: at, workers: [] });
  const held = (/** @type {any} */ state) => state.views.deployments.history.qwen?.readings ?? [];
  let state = world([deployment({ token_time: time(0) })]);
  assert.equal(held(state).length, 1);
  state = after(state, ["deployment", deployment({ token_time: time(0) })], ["deployment", deployment({ token_time: time(1) })]);
  assert.deepEqual(held(state).map((/** @type {any} */ each) => each.host_ms), [0, 1]);
  for (let at = 2; at < 200; at += 1) state = after(state, ["deployment", deployment({ token_time: time(at) })]);
  assert.deepEqual([held(state).length, held(state)[0].host_ms, held(state).at(-1).host_ms], [120, 80, 199]);
  state = after(state, ["deployment", deployment({ launch_id: 8, token_time: time(300) })]);
  assert.deepEqual(held(state).map((/** @type {any} */ each) => each.host_ms), [300]);
  assert.equal(held(after(state, ["deployment_removed", { id: "qwen" }])).length, 0);
});

test("median of the first tokens", () => {
  const of = (/** @type {any[]} */ ...values) => medianFirstToken(values.map((first_token_s) => /** @type {any} */ ({ first_token_s })));
  assert.equal(of(), null);
  assert.equal(of(null), null);
  assert.equal(of(3, null, 1, 2), 2);
  assert.equal(of(1, 4), 2.5);
});

test("devices of a plan, and the main host where it takes part", () => {
  assert.deepEqual(devicesOf(deployment()), ["phone", "mac"]);
  assert.deepEqual(devicesOf(deployment({ plan: { ...plan, shards: [] } })), ["Main host"]);
  assert.deepEqual(devicesOf(deployment({ plan: { ...plan, host: { ...plan.host, layers: 2 } } })), ["Main host", "phone", "mac"]);
});

test("a line for a shell", () => {
  const words = curlLine("http://desk:8100", "qwen");
  assert.match(words, /^curl http:\/\/desk:8100\/v1\/chat\/completions /);
  assert.match(words, /"model":"qwen"/);
});

const logOf = (/** @type {any} */ state) => state.views.deployments.log;
const lines = { id: "qwen", process: "link", file: "1.log", text: "a\n" };

test("the log is there while it is open and looked at", () => {
  const open = after(world([deployment()]), ["deployments/log-open", { open: true }], ["deployments/log-lines", lines]);
  assert.equal(logOf(open).lines.length, 1);
  assert.equal(logOf(after(open, ["deployments/log-open", { open: false }])), null);
  assert.equal(logOf(after(open, ["route", { view: "devices", parts: [] }])), null);
  assert.equal(logOf(after(open, ["deployment_removed", { id: "qwen" }], ["route", { view: "deployments", parts: [] }])), null);
});

test("lines that come late, for another or a closed log, change nothing", () => {
  const closed = world([deployment()]);
  assert.equal(logOf(after(closed, ["deployments/log-lines", lines])), null);
  const open = after(closed, ["deployments/log-open", { open: true }]);
  assert.equal(logOf(after(open, ["deployments/log-lines", { ...lines, id: "other" }])), logOf(open));
});

test("a log that cannot be read says why, until it can", () => {
  const open = after(world([deployment()]), ["deployments/log-open", { open: true }],
    ["deployments/log-silent", { id: "qwen", process: "phone", detail: "it does not answer" }]);
  assert.match(textOf(shown(open)), /No log of phone: it does not answer/);
  assert.doesNotMatch(textOf(shown(after(open, ["deployments/log-lines", { ...lines, process: "phone" }]))), /No log of phone/);
});

test("commands of a launch that is not shown any more are not shown", () => {
  const record = { environment: { A: "1" }, workers: [{ device: "phone", environment: { B: "2" } }] };
  const answer = { launch: 7, commands: [{ host: "desk", command: "llama-server --x" }], record };
  const open = after(world([deployment()]), ["deployments/commands-open", { open: true }], ["deployments/commands", answer]);
  assert.match(textOf(shown(open)), /llama-server --x/);
  assert.match(textOf(shown(open)), /phone B 2/);
  assert.doesNotMatch(textOf(shown(after(open, ["deployment", deployment({ launch_id: 8 })]))), /llama-server --x/);
  assert.equal(after(world([deployment()]), ["deployments/commands", answer]).views.deployments.commands, null);
});

test("a stopped deployment does not show why it failed before", () => {
  assert.equal(reasonLine(deployment({ state: "stopped", cause: cause() })), "Nothing runs, as you asked.");
});

test("the colour of a process is that of its device in the plan", () => {
  assert.deepEqual(["phone", "mac", "llama-server", "link"].map((name) => hueOf(plan, name)), ["c0", "c1", "host-hue", "link-hue"]);
  assert.equal(hueOf(null, "phone"), "host-hue");
});

test("the log of a deployment that is gone is not followed any more", () => {
  const open = after(world([deployment()]), ["deployments/log-open", { open: true }]);
  assert.equal(logOf(after(open, ["deployment_removed", { id: "qwen" }])), null);
});

test("the speed is that of now while tokens come, else that of the last answer", () => {
  const token_time = { at: NOW, tokens: 90, host_ms: 5, workers: [{ device: "phone", compute_ms: 12, wire_ms: 3 }] };
  const at = (/** @type {any} */ deployment, active = 0) => speedNow({ state: "ready", tokens_per_second: null, token_time: null, ...deployment }, /** @type {any} */ ({ active }));
  assert.deepEqual(at({ token_time, tokens_per_second: 7 }, 1), { value: 50, when: "now" });
  assert.deepEqual(at({ state: "degraded", token_time, tokens_per_second: 7 }, 1), { value: 7, when: "in the last answer" });
  assert.deepEqual(at({ token_time, tokens_per_second: 7 }), { value: 7, when: "in the last answer" });
  assert.deepEqual(at({ tokens_per_second: 7 }, 1), { value: 7, when: "in the last answer" });
  assert.deepEqual(at({}, 1), { value: null, when: "not known yet" });
  assert.deepEqual(at({}), { value: null, when: "no answer yet" });
});

test("what a repair would do by itself, it does at the next start where it has given up", () => {
  const remedy = "its share gets smaller; add a device";
  const told = (/** @type {string} */ state) => story(deployment({ state, cause: cause({ remedy }) }), {}, NOW_MS)?.remedy;
  assert.equal(told("backoff"), "Its share gets smaller; add a device.");
  assert.equal(told("failed"), "At the next start, its share gets smaller; add a device.");
});
