// @ts-check
import assert from "node:assert/strict";
import { test } from "node:test";

import { argumentsOf, compared, devicesOf, paired, readyText, shellLine } from "../../dashboard/records/compare.mjs";
import { effect, initial, reduce } from "../../dashboard/records/state.mjs";
import { render } from "../../dashboard/records/view.mjs";

const GIB = 1024 ** 3;
/** @param {string} device @param {object} [more] */
const shard = (device, more) => ({ device, agent_id: device, ggml_device: "CPU", layers: 12, has_output: false, weight_bytes: GIB, kv_bytes: 0, compute_bytes: 0, peak_bytes: GIB, budget_bytes: 2 * GIB, available_bytes: 2 * GIB, ...more });
/** @param {object} [more] @returns {any} */
const launch = (more) => ({
  id: 7, deployment: "gem", started_at: "2026-01-01T00:00:00Z", ended_at: "", outcome: "ready", reason: "", error_code: "", cause: null, main_host: "desk",
  engine: { path: "/bin/llama-server", version: "1", build: "b1", rpc_protocol: "7.0.0", problem: "" },
  plan: { model: { name: "m", path: "/m.gguf", architecture: "llama", block_count: 24, size_bytes: GIB }, ctx_tokens: 4096, slots: 1, kv_type: "f16", ubatch: 512,
    shards: [shard("phone"), shard("mac")], host: { ...shard("main host"), layers: 0 }, reasons: [], left_out: [],
    prediction: { decode_tokens_per_s: 10, prefill_tokens_per_s: 100, load_s: 20, prompt_tokens: 1000, users: 1, output_s: 0, stages: [], is_guess: false } },
  workers: [{ device: "phone", host: "127.0.0.1", port: 8199, link: "10.0.0.2:8103", address: "10.0.0.2", rpc_protocol: "7.0.0", engine_build: "b1", round_trip_ms: 4, argv: ["rpc-server", "-p", "8110"], environment: { A: "1" } }],
  argv: ["llama-server", "--rpc", "127.0.0.1:8199", "-c", "4096", "--metrics"], environment: {}, port: 8110,
  timeline: [{ name: "planned", at_s: 0.1, took_s: 0.1 }, { name: "loaded", at_s: 20.1, took_s: 20 }, { name: "first token", at_s: 21, took_s: 0.9 }],
  memory: [{ process: "phone", predicted_bytes: GIB, budget_bytes: 2 * GIB, has_gpu: false, measured_bytes: GIB / 2 }],
  links: [{ device: "phone", state: "serving", phase: "", round_trip_ms: 4, weight_bytes: GIB, saved_bytes: 0, remaining_bytes: 0, bytes_per_s: 0, sent_bytes: GIB, received_bytes: GIB, eta_s: null, wire_share: 0.2, detail: "" }],
  transitions: [{ id: 1, at: "2026-01-01T00:00:01Z", kind: "deployment", subject: "gem", change: "starting -> ready", launch_id: 7, code: "", text: "first token" }], ...more,
});
/** @param {any} node @returns {string} */
const words = (node) => (typeof node === "string" ? node : !node || typeof node !== "object" ? "" : Array.isArray(node) ? node.map(words).join(" ")
  : "make" in node ? words(node.make()) : node.children.map(words).join(" "));

test("a command is taken apart into its options", () => {
  assert.deepEqual(argumentsOf(["llama-server", "-c", "4096", "--metrics", "-ot", "a=CPU", "-ot", "b=CPU", "--temp", "-1", "--ctx", "x", "y"]), [
    ["program", "llama-server"], ["-c", "4096"], ["--metrics", ""], ["-ot", "a=CPU"], ["-ot (2)", "b=CPU"], ["--temp", "-1"], ["--ctx", "x y"]]);
  assert.deepEqual(argumentsOf(["p", "first", "-a"]), [["program", "p"], ["(first)", "first"], ["-a", ""]]);
  assert.deepEqual(argumentsOf([]), [["program", ""]]);
});

test("options are paired by name: changed, added, removed", () => {
  const pairs = paired(argumentsOf(["p", "-a", "1", "-b", "-d", "4"]), argumentsOf(["p", "-a", "2", "-c", "3", "-d", "4", "-e"]));
  assert.deepEqual(pairs.map(({ name, left, right, isSame }) => [name, left, right, isSame]), [
    ["program", "p", "p", true], ["-a", "1", "2", false], ["-c", null, "3", false], ["-b", "", null, false], ["-d", "4", "4", true], ["-e", null, "", false]]);
  assert.deepEqual(paired([], [["x", "1"], ["y", "2"]]).map(({ name }) => name), ["x", "y"]);
  assert.deepEqual(paired([["x", "1", 2]], [["x", "3", 5]])[0].ratio, 2.5);
  assert.deepEqual(paired([["x", "1", 0]], [["x", "3", 5]])[0].ratio, null);
});

test("two launches: all that differs, and nothing else", () => {
  const left = launch();
  const differing = (/** @type {any} */ right) => compared(left, right).flatMap(({ title, rows }) => rows.filter(({ isSame }) => !isSame).map(({ name, left: a, right: b }) => [title, name, a, b]));
  assert.deepEqual(differing(launch({ id: 8, started_at: "2026-02-02T00:00:00Z" })), []);
  const slower = launch({ timeline: [left.timeline[0], { name: "loaded", at_s: 40.1, took_s: 40 }], outcome: "failed", cause: { sentence: "phone was lost", evidence: [], remedy: "" },
    argv: [...left.argv.slice(0, 4), "8192"], environment: { GGML: "1" } });
  assert.deepEqual(differing(slower), [
    ["Launch", "outcome", "ready", "failed"], ["Launch", "cause", "", "phone was lost"], ["Launch", "ready after", "21 s", "never"],
    ["Time of each phase", "loaded", "20 s", "40 s"], ["Time of each phase", "first token", "900 ms", null],
    ["Command of llama-server", "GGML=", null, "1"], ["Command of llama-server", "-c", "4096", "8192"], ["Command of llama-server", "--metrics", "", null]]);
  assert.equal(compared(left, slower).flatMap(({ rows }) => rows).find(({ name }) => name === "loaded")?.ratio, 2);
  const alone = launch({ workers: [], links: [], memory: [], plan: { ...left.plan, shards: [], prediction: null } });
  const titles = compared(left, alone).filter(({ rows }) => rows.some(({ isSame }) => !isSame)).map(({ title }) => title);
  assert.deepEqual(titles, ["Plan", "Layers and memory of each device", "Command of phone", "Workers", "Memory measured", "Sent over links"]);
});

test("words of a launch", () => {
  assert.equal(devicesOf(launch()), "phone, mac");
  assert.equal(devicesOf(launch({ plan: { shards: [] } })), "main host alone");
  assert.equal(readyText(launch({ timeline: [] })), "never");
  assert.equal(shellLine(["/bin/a b", "--x=1", "it's", ""], { N: "$x" }), "env N='$x' '/bin/a b' --x=1 'it'\\''s' ''");
  assert.equal(shellLine(["a", "-p", "1"], {}), "a -p 1");
});

test("the last two that were ticked are compared", () => {
  const pick = (/** @type {any} */ own, /** @type {string} */ id, isPicked = true) => reduce(own, { type: "records/pick", data: { id, isPicked } });
  const three = ["1", "2", "3"].reduce((own, id) => pick(own, id), initial);
  assert.deepEqual(three.picked, ["2", "3"]);
  assert.deepEqual(pick(three, "2", false).picked, ["3"]);
  assert.equal(reduce(three, { type: "other", data: {} }), three);
});

/** @param {string[]} parts @param {any} own @param {object} [more] @returns {any} */
const state = (parts, own, more) => ({ route: { view: "records", parts }, connection: "connected", deployments: {}, asks: {}, copied: "", views: { records: own }, ...more });

test("each address shows what it names", () => {
  const known = { 7: launch(), 8: launch({ id: 8, outcome: "failed", reason: "phone <b>was</b> lost", timeline: [] }) };
  const own = { ...initial, list: Object.values(known), known, shell: { 7: [{ host: "phone", command: "rpc-server" }] } };
  assert.match(words(render(state([], own))), /Tick two.*7 gem.*ready.*21 s.*phone, mac/s);
  assert.match(words(render(state([], { ...own, picked: ["8", "7"] }))), /Compare 7 and 8/);
  assert.match(words(render(state([], { ...own, list: [] }))), /Nothing was launched yet/);
  const one = words(render(state(["7"], own)));
  for (const part of [/Launch 7 of gem/, /10\.0\.0\.2:8103/, /env A=1 rpc-server -p 8110/, /llama-server --rpc/, /# on phone\nrpc-server/, /50 %/, /starting -> ready/]) assert.match(one, part);
  assert.match(words(render(state(["8"], own))), /phone <b>was<\/b> lost/);
  const both = words(render(state(["7", "8"], own)));
  assert.match(both, /outcome.*ready.*failed/s);
  assert.doesNotMatch(both, /KV cache/);
  assert.match(words(render(state(["7", "8"], { ...own, showsAll: true }))), /KV cache/);
  assert.match(words(render(state(["9"], own))), /Reading/);
  assert.match(words(render(state(["9"], own, { asks: { "record 9": { busy: false, error: "no launch 9 was recorded" } } }))), /no launch 9/);
});

test("what is shown is read once, and again when a deployment moves", async () => {
  /** @type {string[]} */
  const asked = [];
  const note = (/** @type {string} */ what) => async (/** @type {any} */ id) => { asked.push(`${what} ${id}`); return { commands: [] }; };
  const page = /** @type {any} */ ({
    api: { records: note("list"), record: note("record"), shell: note("shell") },
    ask: async (/** @type {string} */ _, /** @type {Promise<any>} */ answer) => ({ value: await answer }), dispatch() {},
  });
  const moved = (/** @type {string} */ word) => ({ deployments: { gem: { launch_id: 7, state: word } } });
  const away = state([], initial, { route: { view: "chat", parts: [] } });
  await effect(page, away, state([], initial));
  assert.deepEqual(asked.splice(0), ["list 50"]);
  await effect(page, state([], initial), state(["7"], initial));
  assert.deepEqual(asked.splice(0), ["record 7", "shell 7"]);
  await effect(page, state(["7"], initial, moved("starting")), state(["7"], initial, moved("starting")));
  assert.deepEqual(asked.splice(0), []);
  await effect(page, state(["7"], initial, moved("starting")), state(["7"], initial, moved("ready")));
  assert.deepEqual(asked.splice(0), ["record 7", "shell 7"]);
  await effect(page, state([], initial), state(["7", "8"], initial));
  assert.deepEqual(asked.splice(0), ["record 7", "record 8"]);
  await effect(page, state(["7"], initial), away);
  await effect(page, away, state([], initial, { connection: "disconnected" }));
  assert.deepEqual(asked, []);
});
