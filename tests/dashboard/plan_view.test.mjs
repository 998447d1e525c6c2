// @ts-check
import assert from "node:assert/strict";
import { test } from "node:test";

import { layerWords, memoryBar, memoryWords, places, planView } from "../../dashboard/plan_view.mjs";

const GIB = 1024 ** 3;
const use = (/** @type {object} */ more = {}) => ({
  weight_bytes: 4 * GIB, kv_bytes: 2 * GIB, compute_bytes: 1 * GIB, peak_bytes: 7 * GIB, budget_bytes: 9 * GIB, available_bytes: 10 * GIB, ...more,
});
/** @param {string} device @param {number} layers @param {object} [more] */
const shard = (device, layers, more) =>
  ({ agent_id: device, device, ggml_device: "CPU", layers, has_output: false, ...use(), ...more });
const prediction = { decode_tokens_per_s: 12.34, prefill_tokens_per_s: 150, load_s: 38, prompt_tokens: 1000, users: 1, output_s: 0, stages: [], is_guess: false };
/** @param {object} [more] @returns {any} */
const plan = (more) => ({
  model: { name: "m", architecture: "llama", block_count: 28, size_bytes: 1 }, ctx_tokens: 4096, slots: 2, kv_type: "q8_0", ubatch: 256,
  shards: [shard("mac", 12), shard("pixel", 17, { has_output: true })], host: { layers: 0, has_output: false, ...use() },
  prediction, reasons: [], left_out: [], ...more,
});

/** All text of a virtual tree. @param {any} node @returns {string} */
const words = (node) => (typeof node === "string" ? node : [node].flat().map((/** @type {any} */ each) =>
  (typeof each === "string" ? each : each.children.map(words).join(""))).join(" "));
/** All nodes with a class. @param {any} node @param {string} name @returns {any[]} */
const all = (node, name) => (typeof node === "string" ? [] :
  [...(String(node.props.class ?? "").split(" ").includes(name) ? [node] : []), ...node.children.flatMap((/** @type {any} */ each) => all(each, name))]);

test("places cover all layers once, in order; the output counted on the last share is no layer", () => {
  assert.deepEqual(places(plan()).map(({ name, first, layers, hasOutput }) => [name, first, layers, hasOutput]),
    [["mac", 1, 12, false], ["pixel", 13, 16, true]]);
  const onHost = plan({ shards: [shard("mac", 12), shard("pixel", 7)], host: { layers: 10, has_output: true, ...use() } });
  assert.deepEqual(places(onHost).map(({ name, first, layers, hasOutput }) => [name, first, layers, hasOutput]),
    [["Main host", 1, 10, true], ["mac", 11, 12, false], ["pixel", 23, 6, false]]);
  const alone = plan({ shards: [], host: { layers: 28, has_output: true, ...use() } });
  assert.deepEqual(places(alone).map(layerWords), ["layers 1–28 and output"]);
});

test("layers in words", () => {
  const words = (/** @type {object} */ more) => layerWords(/** @type {any} */ ({ first: 3, layers: 1, hasOutput: false, ...more }));
  assert.equal(words({}), "layer 3");
  assert.equal(words({ layers: 4 }), "layers 3–6");
  assert.equal(words({ layers: 0, hasOutput: true }), "only the output");
  assert.equal(words({ layers: 0 }), "no layers");
});

/** @param {ReturnType<typeof memoryBar>} bar */
const shares = ({ parts }) => Object.fromEntries(parts);
/** @param {ReturnType<typeof memoryBar>} bar */
const sum = ({ parts }) => parts.reduce((total, [, share]) => total + Number(share), 0);

test("the parts of a bar sum to one, and are as long as their bytes", () => {
  const bar = memoryBar(use());
  assert.deepEqual(shares(bar), { weights: 0.4, kv: 0.2, compute: 0.1, loading: 0, free: 0.3 });
  assert.equal(bar.budget, 0.9);
  assert.equal(bar.over_bytes, 0);
  for (const more of [{}, { peak_bytes: 8.5 * GIB }, { peak_bytes: 30 * GIB }, { available_bytes: 0 }, { weight_bytes: 0, kv_bytes: 0, compute_bytes: 0 }]) {
    assert.ok(Math.abs(sum(memoryBar(use(more))) - 1) < 1e-12, JSON.stringify(more));
  }
});

test("what loading needs for a while is a part of its own", () => {
  const bar = memoryBar(use({ peak_bytes: 8 * GIB }));
  assert.equal(shares(bar).loading, 0.1);
  assert.equal(bar.free_bytes, 2 * GIB);
});

test("more than the budget is told, and more than there is makes the bar longer than what is available", () => {
  const over = memoryBar(use({ peak_bytes: 9.5 * GIB }));
  assert.equal(over.over_bytes, 0.5 * GIB);
  const beyond = memoryBar(use({ peak_bytes: 20 * GIB }));
  assert.equal(beyond.budget, 0.45);
  assert.equal(shares(beyond).free, 0);
  assert.equal(beyond.free_bytes, 0);
  assert.match(memoryWords(use({ peak_bytes: 20 * GIB }))[1], /^11\.0 GiB over its limit$/);
});

test("older records without all figures still make a bar", () => {
  const bar = memoryBar(/** @type {any} */ ({ peak_bytes: 5 * GIB, available_bytes: 10 * GIB }));
  assert.equal(sum(bar), 1);
  assert.equal(bar.budget, 1);
});

test("memory in words", () => {
  assert.deepEqual(memoryWords(use()), ["4.0 GiB weights · 2.0 GiB KV · 1.0 GiB compute", "3.0 of 10.0 GiB free"]);
  assert.deepEqual(memoryWords(use({ kv_bytes: 0, peak_bytes: 9.6 * GIB })), ["4.0 GiB weights · 1.0 GiB compute · 4.6 GiB while loading", "614 MiB over its limit"]);
  assert.equal(memoryWords(use({ peak_bytes: 9.5 * GIB, budget_bytes: 10 * GIB }))[1], "512 MiB of 10.0 GiB free");
});

test("the picture says all its figures as text", () => {
  const text = words(planView(plan()));
  for (const part of ["12.3 tokens/s expected", "38 s", "150.0 tokens/s", "4,096 tokens", "q8_0", "256", "mac", "layers 1–12", "layers 13–28 and output", "llama-server itself", "embeddings"]) {
    assert.ok(text.includes(part), `${part} in: ${text}`);
  }
  assert.ok(!text.includes("guess"));
});

test("a guess is called so, and many users share the speed", () => {
  const text = words(planView(plan({ prediction: { ...prediction, is_guess: true, users: 8 } })));
  assert.match(text, /A guess: some device was never measured\./);
  assert.match(text, /expected for 8 users together/);
  assert.match(words(planView(plan({ prediction: null }))), /No speed was predicted/);
});

test("the strip has one part for each place, in its colour, which comes again after six", () => {
  const many = plan({ shards: Array.from({ length: 7 }, (_, index) => shard(`d${index}`, index === 6 ? 5 : 4)) });
  const [strip] = all(planView(many), "layers");
  assert.deepEqual(strip.children.map((/** @type {any} */ part) => [part.props.class, part.props.vars["--part"]]),
    ["c0", "c1", "c2", "c3", "c4", "c5", "c0"].map((name) => [name, 4]));
});

test("a device of the plan that is not ready now, or no longer here, is told", () => {
  const devices = /** @type {any} */ ({ mac: { state: "lost" } });
  const text = words(planView(plan(), { devices }));
  assert.match(text, /lost/);
  assert.match(text, /not here/);
  assert.doesNotMatch(words(planView(plan())), /lost|not here/);
});

test("reasons and what was left out: a few at once, the others one click away", () => {
  const left_out = Array.from({ length: 200 }, (_, index) => ({ name: `d${index}`, reason: "would not pay", tokens_per_s: index ? null : 3.25, cost_s: null }));
  const view = planView(plan({ reasons: ["Because."], left_out }));
  const text = words(view);
  assert.match(text, /Because\./);
  assert.match(text, /d0 would not pay \(3\.[23] tokens\/s with it\)/);
  assert.match(text, /196 more/);
  assert.doesNotMatch(words(planView(plan({ reasons: ["Because."] }), { isCompact: true })), /Because/);
});
