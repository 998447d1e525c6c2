// @ts-check
import assert from "node:assert/strict";
import { test } from "node:test";

import { modelsHere, BLANK, changesOf, contextSteps, formOf, isLive, isOnHub, nameOf, nearestStep, specOf } from "../../dashboard/launch/spec.mjs";
import { initial, isWanted, reduce, standing } from "../../dashboard/launch/state.mjs";
import { launchView } from "../../dashboard/launch/view.mjs";

const MODEL = "/models/gemma-3-4b-it-Q4_K_M.gguf";
const form = { ...BLANK, model: MODEL };
/** As the main host answers: every field is there. @param {object} [more] @returns {any} */
const spec = (more) => ({
  model: MODEL, name: "gemma", ctx_tokens: 8192, min_ctx_tokens: 2048, slots: 2, devices: [], exclude: [], order: [], split: [],
  kv_type: null, ubatch: null, pin_output: "mac", goal: "balanced", transport: "direct", prompt_tokens: 10, generated_tokens: 20,
  users: 3, on_demand: true, ttl_s: 90, aliases: ["gpt-4o"], ...more,
});
const plan = /** @type {any} */ ({
  model: { name: "gemma 3", architecture: "gemma3", block_count: 34, size_bytes: 1, ctx_train_tokens: 32_768 }, ctx_tokens: 4096, slots: 1,
  kv_type: "f16", ubatch: 512, shards: [], host: { layers: 34, has_output: true, weight_bytes: 1, kv_bytes: 1, compute_bytes: 1, peak_bytes: 3,
    budget_bytes: 9, available_bytes: 10 },
  prediction: { decode_tokens_per_s: 10, prefill_tokens_per_s: 100, load_s: 1, prompt_tokens: 1000, users: 1, output_s: 0, stages: [], is_guess: true },
  reasons: [], left_out: [],
});
const answer = { plan, what_ifs: [], commands: [{ host: "desk", command: "llama-server -m x" }] };

// The form and the spec

test("a blank form with a model is the main host's own defaults", () => {
  assert.deepEqual(specOf(form), { problem: "", spec: {
    model: MODEL, name: null, ctx_tokens: 4096, slots: 1, kv_type: null, goal: "balanced", devices: [], exclude: [], order: [], split: [],
    ubatch: null, on_demand: false, ttl_s: null, aliases: [] } });
});

test("what was typed becomes numbers and lists", () => {
  const typed = { ...form, ctx: " 8192 ", order: "mac, pixel 8", split: "12 9", ubatch: "256", ttl: "1.5", aliases: "a, ,b", devices: ["x"], exclude: ["y"] };
  const made = specOf(typed).spec;
  assert.deepEqual([made?.ctx_tokens, made?.order, made?.split, made?.ubatch, made?.ttl_s, made?.aliases], [8192, ["mac", "pixel 8"], [12, 9], 256, 90, ["a", "b"]]);
  assert.deepEqual([made?.devices, made?.exclude], [[], ["y"]], "an order names all devices itself");
});

for (const [change, words] of /** @type {[object, RegExp][]} */ ([
  [{ model: "" }, /Pick a model/], [{ ctx: "" }, /context/], [{ ctx: "100" }, /256 to/], [{ ctx: "4096.5" }, /whole number/], [{ slots: "0" }, /slots/],
  [{ ubatch: "8" }, /ubatch/], [{ name: "a b" }, /name/], [{ split: "a" }, /Layers are/], [{ split: "12, 9" }, /as many devices/],
  [{ split: "12, 9", order: "a" }, /as many devices/], [{ ttl: "0" }, /Minutes/], [{ ttl: "soon" }, /Minutes/],
])) {
  test(`${JSON.stringify(change)} is refused in words`, () => {
    const made = specOf({ ...form, ...change });
    assert.equal(made.spec, null);
    assert.match(made.problem, words);
  });
}

test("to the form and back nothing is lost, whether the form shows it or not", () => {
  for (const more of [{}, { order: ["a", "b"], split: [3, 4] }, { devices: ["a"], exclude: ["b"] }, { kv_type: "q8_0", ubatch: 64, ttl_s: null, aliases: [] }]) {
    assert.deepEqual(specOf(formOf(spec(more)), spec(more)).spec, spec(more));
  }
});

test("changes are listed with both values, and only them", () => {
  assert.deepEqual(changesOf(spec(), spec()), []);
  assert.deepEqual(changesOf(spec(), spec({ kv_type: "q8_0", exclude: ["pixel", "mac"], on_demand: false, ttl_s: null })), [
    { label: "KV cache", from: "automatic", to: "q8_0" }, { label: "Never used", from: "none", to: "pixel, mac" },
    { label: "On demand", from: "yes", to: "no" }, { label: "Stopped when idle for", from: "1 min 30 s", to: "never" },
  ]);
});

test("the name is the main host's own for such a model", () => {
  const names = /** @type {[string, string][]} */ ([[MODEL, "gemma-3-4b-it-Q4_K_M"], ["/m/a b(1).gguf", "a-b-1"], ["/m/_x_.gguf", "x"], ["/m/?.gguf", "model"], [`/m/${"x".repeat(80)}.gguf`, "x".repeat(63)]]);
  for (const [model, name] of names) assert.equal(nameOf({ ...BLANK, model }), name);
  assert.equal(nameOf({ ...form, name: "chosen" }), "chosen");
});

test("models of the hub are told from files", () => {
  for (const model of ["unsloth/gemma-3-4b-it-GGUF:Q4_K_M", "a/b", "a/b/c/d.gguf"]) assert.ok(isOnHub(model), model);
  for (const model of [MODEL, "models/x.gguf", "x.gguf", "~/m/x.gguf", ""]) assert.ok(!isOnHub(model), model);
});

// The slider

test("steps grow by ratio, from 512 to the training length", () => {
  const steps = contextSteps(null);
  assert.deepEqual(steps.slice(0, 5), [512, 768, 1024, 1536, 2048]);
  assert.equal(steps.at(-1), 131_072);
  assert.deepEqual(contextSteps(40_960).slice(-3), [24_576, 32_768, 40_960]);
  assert.deepEqual(contextSteps(100), [512]);
});

test("every step leads back to itself, and what is between to the nearest by ratio", () => {
  for (const trained of [null, 2048, 32_768, 40_960, 1_048_576]) {
    const steps = contextSteps(trained);
    assert.deepEqual(steps.map((step) => nearestStep(steps, step)), steps.map((_, index) => index));
    assert.ok(steps.every((step, index) => index === 0 || step > steps[index - 1]));
  }
  const steps = contextSteps(null);
  assert.equal(steps[nearestStep(steps, 4200)], 4096);
  assert.equal(steps[nearestStep(steps, 10_000_000)], 131_072);
  assert.equal(steps[nearestStep(steps, NaN)], 512);
});

test("a shorter training length moves no step that both have", () => {
  const [long, short] = [contextSteps(131_072), contextSteps(8192)];
  assert.deepEqual(long.slice(0, short.length), short);
});

// What the view holds

/** @param {object} [more] @returns {any} */
const world = (more) => ({
  route: { view: "launch", parts: [] }, host: { main_host: "desk" }, deployments: {}, devices: {}, models: [], asks: {}, updated_ms: 0, copied: "",
  connection: "connected", ...more,
});
/** @param {any} own @param {[string, object?][]} events @param {object} [more] */
const after = (own, events, more) => events.reduce((held, [type, data = {}]) => reduce(held, { type, data }, world(more)), own);
/** @param {any} own @param {object} [more] @returns {any} */
const page = (own, more) => world({ views: { launch: own }, ...more });
const picked = after(initial, [["launch/pick", { model: MODEL }]]);
const planned = after(picked, [["launch/answer", { serial: picked.serial, answer }]]);

test("only the answer to the newest wish counts", () => {
  const changed = after(planned, [["launch/change", { form: { ctx: "8192" } }]]);
  assert.equal(changed.serial, planned.serial + 1);
  assert.equal(after(changed, [["launch/answer", { serial: planned.serial, answer: "late" }]]), changed);
  assert.equal(after(changed, [["launch/refused", { serial: planned.serial, error: "late" }]]), changed);
  assert.equal(changed.plan.answer, answer, "the old plan stays while the new one is asked for");
  assert.equal(standing(page(changed)).isAsking, true);
  const answered = after(changed, [["launch/answer", { serial: changed.serial, answer: { plan } }]]);
  assert.equal(standing(page(answered)).isAsking, false);
});

test("a refusal keeps the last good plan, and the next good one forgets the refusal", () => {
  const wish = after(planned, [["launch/change", { form: { ctx: "99999" } }]]);
  const refused = after(wish, [["launch/refused", { serial: wish.serial, error: "No.", code: "insufficient_memory", nearest: { ctx_tokens: 1 } }]]);
  assert.equal(refused.plan.answer, answer);
  assert.equal(standing(page(refused)).why, "It does not fit.");
  const again = after(refused, [["launch/answer", { serial: refused.serial, answer }]]);
  assert.deepEqual([again.plan.error, again.plan.nearest], ["", null]);
});

test("what changes nothing asks nothing", () => {
  assert.equal(after(planned, [["launch/change", { form: { ctx: planned.form.ctx } }]]), planned);
  assert.equal(after(planned, [["tokens", {}]]), planned);
});

test("another model forgets the plan of the one before", () => {
  const other = after(planned, [["launch/pick", { model: "/m/other.gguf" }]]);
  assert.equal(other.plan.answer, null);
  assert.equal(other.picker, "");
  assert.equal(standing(page(other)).why, "Waiting for the plan.");
});

test("to pick the same model again keeps its plan", () => {
  assert.equal(after(after(planned, [["launch/picker", { picker: "here" }]]), [["launch/pick", { model: MODEL }]]).plan.answer, answer);
});

test("devices that come, go or are taken ask again, heartbeats do not", () => {
  const device = { id: "a", name: "mac", state: "ready", excluded: false, used_by: null };
  const known = after(planned, [["device", device]], { devices: { a: device } });
  assert.equal(known.serial, planned.serial + 1);
  assert.equal(after(known, [["device", device]], { devices: { a: { ...device, silent_s: 2 } } }), known);
  assert.equal(after(known, [["device", device]], { devices: { a: { ...device, used_by: "x" } } }).serial, known.serial + 1);
  assert.equal(after(known, [["device_removed", device]]).serial, known.serial + 1);
  assert.equal(after(initial, [["device", device]], { devices: { a: device } }).serial, initial.serial, "without a model nothing is asked");
});

test("a device is taken out and in again", () => {
  const mac = { name: "mac", id: "a" };
  const out = after(planned, [["launch/device", mac]]);
  assert.deepEqual([out.form.exclude, isWanted(out.form, mac)], [["mac"], false]);
  const back = after(out, [["launch/device", mac]]);
  assert.deepEqual([back.form.exclude, isWanted(back.form, mac)], [[], true]);
  const byId = { ...planned, form: { ...form, exclude: ["a"] } };
  assert.deepEqual(after(byId, [["launch/device", mac]]).form.exclude, [], "by whatever it was called");
});

test("where devices are named, ticking names them", () => {
  const named = { ...planned, form: { ...form, devices: ["mac/MTL0", "pixel"] } };
  assert.deepEqual(["mac", "pixel", "pc"].map((name) => isWanted(named.form, { name, id: "?" })), [true, true, false]);
  assert.deepEqual(after(named, [["launch/device", { name: "mac", id: "?" }]]).form.devices, ["pixel"]);
  assert.deepEqual(after(named, [["launch/device", { name: "pc", id: "?" }]]).form.devices, ["mac/MTL0", "pixel", "pc"]);
});

test("results of a search or a repository that was left are dropped", () => {
  const asked = after(initial, [["launch/hub", { text: "gemma" }], ["launch/hub", { text: "gemma 3" }]]);
  assert.equal(after(asked, [["launch/found", { text: "gemma", repos: [1] }]]), asked);
  const found = after(asked, [["launch/found", { text: "gemma 3", repos: [1] }], ["launch/repo", { repo: "a/b" }], ["launch/repo", { repo: "c/d" }]]);
  assert.equal(after(found, [["launch/files", { repo: "a/b", files: [1] }]]), found);
  assert.deepEqual(after(found, [["launch/files", { repo: "c/d", files: [2] }]]).hub.files, [2]);
});

// Editing

const deployments = { gemma: { id: "gemma", spec: spec(), state: "ready" } };
const editingRoute = { route: { view: "launch", parts: ["gemma"] }, deployments };

test("the address of a deployment fills the form with its spec, also when that comes later", () => {
  const early = after(initial, [["route"]], { ...editingRoute, deployments: {} });
  assert.equal(early.editing, "");
  const editing = after(early, [["snapshot"]], editingRoute);
  assert.deepEqual([editing.editing, editing.form, editing.picker], ["gemma", formOf(spec()), ""]);
  assert.equal(after(editing, [["route"]], editingRoute), editing, "what was changed stays");
  const left = after(editing, [["route"]], { route: { view: "launch", parts: [] }, deployments });
  assert.deepEqual([left.editing, left.form.model], ["", ""]);
});

test("a relaunch needs a change; its own name is no clash", () => {
  const editing = after(initial, [["route"]], editingRoute);
  const ready = after(editing, [["launch/answer", { serial: editing.serial, answer }]]);
  assert.equal(standing(page(ready, { deployments })).why, "Nothing is changed yet.");
  const changed = after(ready, [["launch/change", { form: { slots: "4" } }]]);
  const stand = standing(page(changed, { deployments }));
  assert.deepEqual([stand.why, stand.name, stand.isClash], ["", "gemma", false]);
  assert.deepEqual(stand.changes, [{ label: "Slots", from: "2", to: "4" }]);
});

// What may be launched

test("it is told why nothing can be launched", () => {
  assert.equal(standing(page(initial)).why, "Pick a model first.");
  assert.equal(standing(page(picked)).why, "Waiting for the plan.");
  assert.equal(standing(page(planned)).why, "");
  const hub = after(initial, [["launch/pick", { model: "a/b:Q8_0" }]]);
  assert.equal(standing(page(after(hub, [["launch/answer", { serial: hub.serial, answer }]]))).why, "", "it is fetched first");
  const taken = { "gemma-3-4b-it-Q4_K_M": { id: "gemma-3-4b-it-Q4_K_M", spec: spec(), state: "backoff" } };
  assert.match(standing(page(planned, { deployments: taken })).why, /is there already/);
  const ended = { "gemma-3-4b-it-Q4_K_M": { id: "gemma-3-4b-it-Q4_K_M", spec: spec(), state: "stopped" } };
  assert.equal(standing(page(planned, { deployments: ended })).why, "");
  assert.equal(isLive(undefined), false);
});

/** All text of a virtual tree. @param {any} node @returns {string} */
const words = (node) => [node].flat(Infinity).map((each) =>
  (typeof each === "string" ? each : each.make ? words(each.make()) : each.children.map(words).join(" "))).join(" ");
/** @param {any} node @param {(node: any) => boolean} is @returns {any} */
const find = (node, is) => [node].flat(Infinity).reduce((found, each) =>
  found ?? (typeof each === "string" ? undefined : is(each) ? each : find(each.make ? each.make() : each.children, is)), undefined);
const button = (/** @type {any} */ node) => find(node, (each) => each.props["data-action"] === "launch/submit");

test("what the page says when it fits, is a guess, and can be launched", () => {
  const view = launchView(page(planned));
  const text = words(view);
  for (const part of ["10.0 tokens/s", "fits 1 device", "A guess", "Trained with 32,768", "llama-server -m x"]) assert.ok(text.includes(part), part);
  assert.equal(button(view).props.disabled, false);
  assert.match(words(launchView(page(initial))), /Pick a model\. Its plan appears here/);
});

test("what the page says when it does not fit: the sentences, a remedy that sets the fields, the last good plan", () => {
  const error = "The model does not fit: it needs 9.5 GiB. 3 of its layers find no place. It would fit with a context of 2048.";
  const refused = after(planned, [["launch/refused", { serial: planned.serial, error, code: "insufficient_memory", nearest: { ctx_tokens: 2048, kv_type: "q8_0", ubatch: 128 } }]]);
  const view = launchView(page(refused));
  const alert = find(view, (each) => each.props.role === "alert");
  assert.deepEqual(alert.children.slice(0, 3).map(words), ["The model does not fit: it needs 9.5 GiB.", "3 of its layers find no place.", "It would fit with a context of 2048."]);
  const remedy = find(view, (each) => each.props["data-action"] === "launch/set");
  assert.deepEqual(JSON.parse(remedy.props["data-form"]), { ctx: "2048", kv_type: "q8_0", ubatch: "128" });
  const set = after(refused, [["launch/set", { form: JSON.parse(remedy.props["data-form"]) }]]);
  assert.deepEqual([set.form.ctx, set.serial, set.form_no], ["2048", refused.serial + 1, refused.form_no + 1]);
  assert.match(words(view), /The last plan that fitted/);
  assert.equal(button(view).props.disabled, true);
});

test("a device that others use, or that the operator excluded, is shown and says so", () => {
  const devices = {
    a: { id: "a", name: "mac", state: "ready", used_by: "chat", facts: { memory_available_bytes: 2 ** 31 } },
    b: { id: "b", name: "pixel", state: "ready", excluded: true, facts: null }, c: { id: "c", name: "old", state: "lost", facts: null },
  };
  const view = launchView(page(planned, { devices }));
  const text = words(view);
  for (const part of ["2.0 GiB free, serves chat", "excluded", "lost"]) assert.ok(text.includes(part), part);
  const box = (/** @type {string} */ name) => find(view, (each) => each.props["data-name"] === name).props;
  assert.deepEqual([box("mac").checked, box("pixel").checked, box("pixel").disabled, box("old").disabled], [true, false, true, true]);
});

test("what would make it faster is offered only where it would", () => {
  const what_ifs = [{ change: "another mac", tokens_per_s: 13.1, cost_s: 1 }, { change: "a cable to mac", tokens_per_s: 10.1, cost_s: 1 }];
  const text = words(launchView(page({ ...planned, plan: { ...planned.plan, answer: { ...answer, what_ifs } } })));
  assert.match(text, /\+3\.1 tokens\/s another mac/);
  assert.doesNotMatch(text, /a cable/);
});

test("a refused launch is told until something is changed", () => {
  const sent = after(planned, [["launch/sent"]]);
  const asks = { launch: { busy: false, error: "Another one was quicker." } };
  assert.match(words(launchView(page(sent, { asks }))), /Another one was quicker/);
  const changed = after(sent, [["launch/change", { form: { ctx: "8192" } }]]);
  assert.doesNotMatch(words(launchView(page(changed, { asks }))), /Another one was quicker/);
});

test("a search that is begun elsewhere fills the field; other panes leave it as it is", () => {
  const begun = after(planned, [["launch/picker", { picker: "hub", text: "gemma" }]]);
  assert.deepEqual([begun.picker, begun.hub.text, begun.picker_no], ["hub", "gemma", planned.picker_no + 1]);
  const back = after(begun, [["launch/picker", { picker: "here" }], ["launch/picker", { picker: "hub" }]]);
  assert.equal(back.hub, begun.hub);
});

test("models that deployments use from elsewhere are there to choose, each once", () => {
  const here = [{ path: "/m/a.gguf", name: "a", size_bytes: 1 }];
  const used = (/** @type {string} */ path) => /** @type {any} */ ({ plan: { model: { path, name: "b", size_bytes: 2, architecture: "x" } } });
  const all = modelsHere(here, { x: used("/n/b.gguf"), y: used("/m/a.gguf"), z: used("owner/repo:Q4_K_M"), v: /** @type {any} */ ({ plan: null }) });
  assert.deepEqual(all, [...here, { path: "/n/b.gguf", name: "b", size_bytes: 2 }]);
});
