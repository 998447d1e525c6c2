// @ts-check
import assert from "node:assert/strict";
import { test } from "node:test";

import { getView } from "../../dashboard/models/get_view.mjs";
import { stem } from "../../dashboard/models/pieces.mjs";
import { fitWords, initial, isFitKnown, listed, parameterWords, pullsInOrder, reduce, shortWords, suggestWanted, usersOf } from "../../dashboard/models/state.mjs";
import { modelsView } from "../../dashboard/models/view.mjs";
import { linked } from "../../dashboard/parts.mjs";
import { pullBar, pullTitle, pullWords } from "../../dashboard/pull_view.mjs";
import { reducer } from "../../dashboard/state.mjs";
import { all, attribute, text } from "./tree.mjs";

const GIB = 1024 ** 3;
/** @param {string} name @param {object} [more] @returns {any} */
const model = (name, more) => ({
  path: `/m/${name}.gguf`, name: `${name}.gguf`, source: "folder", reference: "", architecture: "llama", parameters: 8.03e9, quantisation: "Q4_K_M",
  size_bytes: GIB, ctx_train_tokens: 8192, parts: [`/m/${name}.gguf`], changed_at: 1, is_companion: false, projector: "", problem: "", problem_code: "",
  remedy: "", ...more,
});
/** @param {object} [more] @returns {any} */
const fit = (more) => ({ ctx_tokens: 8192, fits: true, tokens_per_s: 11.2, devices: ["mac"], reason: "", kv_type: "f16", missing_bytes: null, smaller_ctx_tokens: null, ...more });
/** @param {object} [more] @returns {any} */
const pull = (more) => ({
  id: "p1", reference: "a/b-GGUF:Q8_0", repo: "a/b-GGUF", label: "Q8_0", files: 1, state: "fetching", done_bytes: GIB, total_bytes: 4 * GIB,
  bytes_per_s: 10 * 1024 ** 2, eta_s: 307.2, path: "", error_code: "", detail: "", deployments: [], ...more,
});
/** @param {string} reference @param {object} [more] @returns {any} */
const suggestion = (reference, more) => ({ reference, repo: "a/b", label: reference.split(":")[1], size_bytes: GIB, fit: fit(), is_recommended: false, reason: "", ...more });
/** @param {object} own @param {object} [more] @returns {any} */
const state = (own, more) => ({
  route: { view: "models", parts: [] }, connection: "connected", who: null, asks: {}, copied: "", devices: {}, deployments: {}, pulls: {}, models: [],
  host: { main_host: "desk" }, updated_ms: 0, views: { models: { ...initial, ...own } }, ...more,
});
/** @param {any} own @param {[string, any][]} events @param {any} [world] */
const after = (own, events, world = state({})) => events.reduce((now, [type, data]) => reduce(now, { type, data }, world), own);
/** @param {any} content @param {string} action */
const buttons = (content, action) => all(content, "button").filter((each) => attribute(each, "data-action") === action);

// What is on this host

test("models with all words of the filter, broken ones and companions apart", () => {
  const models = [model("b-10"), model("b-9", { source: "ollama" }), model("mmproj", { is_companion: true }), model("x", { problem: "it is truncated" })];
  const names = (/** @type {object} */ own) => Object.values(listed(models, { ...initial, ...own })).map((group) => group.map(stem));
  assert.deepEqual(names({}), [["b-9", "b-10"], ["x"], ["mmproj"]]);
  assert.deepEqual(names({ filter: "b- OLLAMA" }), [["b-9"], [], []]);
  const ollama = [model("blob", { name: "qwen3:4b" })];
  assert.equal(listed(ollama, { ...initial, filter: "QWEN3:4b" }).usable.length, 1, "by its name, which is no path");
  assert.deepEqual(names({ filter: "broken" }), [[], ["x"], []]);
});

test("the order is as chosen; those that do not fit are no fast ones", () => {
  const models = [model("a", { size_bytes: 1, changed_at: 3 }), model("b", { size_bytes: 3, changed_at: 1 }), model("c", { size_bytes: 2, changed_at: 2 })];
  const fits = { "/m/a.gguf": { fit: fit({ tokens_per_s: 5 }) }, "/m/b.gguf": { fit: fit({ fits: false, tokens_per_s: 90 }) }, "/m/c.gguf": { fit: fit({ tokens_per_s: 9 }) } };
  const order = (/** @type {string} */ sort) => listed(models, /** @type {any} */ ({ ...initial, sort, fits })).usable.map(stem).join("");
  assert.deepEqual(["name", "size", "newest", "speed"].map(order), ["abc", "bca", "acb", "cab"]);
});

test("a model is named by its file without its part, and its figures are words", () => {
  assert.equal(stem(model("Q-00001-of-00003")), "Q");
  assert.equal(stem(model("", { name: "qwen3:4b" })), "qwen3:4b");
  assert.deepEqual([671e9, 8.03e9, 0.96e9, 494e6].map(parameterWords), ["671B", "8.0B", "1.0B", "494M"]);
});

test("a fit in words: how fast, with which cache, or what is missing", () => {
  assert.equal(fitWords(fit()), "Fits with 8,192 tokens, about 11 tokens/s");
  assert.equal(fitWords(fit({ tokens_per_s: 3.72, kv_type: "q8_0" })), "Fits with 8,192 tokens and a q8_0 cache, about 3.7 tokens/s");
  assert.equal(fitWords(fit({ tokens_per_s: null })), "Fits with 8,192 tokens");
  const no = fit({ fits: false, reason: "it needs more than there is", missing_bytes: 2 * GIB, smaller_ctx_tokens: 2048 });
  assert.equal(fitWords(no), "Does not fit with 8,192 tokens");
  assert.equal(shortWords(no), "It needs 2.0 GiB more, or a context of 2,048 tokens.");
  assert.equal(shortWords({ ...no, smaller_ctx_tokens: null }), "It needs 2.0 GiB more.");
  assert.equal(shortWords({ ...no, missing_bytes: null }), "It needs more than there is.");
});

test("fits are asked anew for another context, other devices, or a changed file; late answers are dropped", () => {
  const one = model("a");
  const asked = after(initial, [["models/fit", { path: one.path, no: 0, changed_at: 1, fit: fit() }]]);
  assert.ok(isFitKnown(asked, one));
  assert.ok(!isFitKnown(asked, { ...one, changed_at: 2 }));
  const other = after(asked, [["models/ctx", { ctx: 4096 }]]);
  assert.ok(!isFitKnown(other, one));
  assert.equal(after(other, [["models/fit", { path: one.path, no: 0, changed_at: 1, fit: fit() }]]), other, "of the context before");
  const world = state({}, { devices: { d: { id: "d", state: "ready", used_by: null } } });
  const moved = after(asked, [["device", {}]], world);
  assert.equal(moved.no, 1);
  assert.equal(after(moved, [["device", {}]], world), moved, "a heartbeat changes nothing");
});

test("a row says what it is, whether it fits, who uses it, and what is wrong", () => {
  const models = [model("a", { projector: "/m/p.gguf", parts: ["1", "2"] }), model("x", { problem: "/m/x.gguf is truncated; get it again", remedy: "get it again" })];
  const deployments = { d: { id: "d", spec: { model: "/m/a.gguf" }, plan: null, state: "ready" }, was: { id: "was", spec: { model: "/m/a.gguf" }, plan: null, state: "stopped" } };
  const seen = modelsView(state({ fits: { "/m/a.gguf": { no: 0, changed_at: 1, fit: fit(), problem: "" } } }, { models, deployments }));
  assert.match(text(seen), /a .*llama · 8\.0B · Q4_K_M · 1\.0 GiB · 2 files · trained with 8,192 tokens · sees images · model folder.*Fits with 8,192.*mac.* d .*ready/);
  assert.doesNotMatch(text(seen), /\bwas\b/);
  assert.match(text(seen), /Cannot be used.*x .*Is truncated\. +Get it again\./);
  assert.deepEqual(buttons(seen, "models/launch").map((each) => attribute(each, "data-model")), ["/m/a.gguf"], "what is broken cannot be launched");
  assert.deepEqual(all(seen, "li").flatMap((each) => attribute(each, "data-fit") || []), ["/m/a.gguf"], "nor is its fit asked for");
});

test("who uses a model is known by path, plan and reference", () => {
  const one = model("a", { reference: "o/r:Q8_0" });
  const users = (/** @type {any} */ deployment) => usersOf(state({}, { deployments: { d: deployment } }), one).length;
  assert.deepEqual([{ spec: { model: "/m/a.gguf" }, plan: null }, { spec: { model: "o/r:Q8_0" }, plan: null }, { spec: { model: "a" }, plan: { model: { path: "/m/a.gguf" } } },
    { spec: { model: "" }, plan: null }].map(users), [1, 1, 1, 0]);
});

test("nothing here: what to do", () => {
  assert.match(text(modelsView(state({}))), /No model was found on this host\. Get one/);
  assert.match(text(modelsView(state({}, { asks: { models: { busy: true, error: "" } } }))), /Looking for models/);
});

// Details

/** @param {string} device @param {number} held @param {number} needed */
const holding = (device, held, needed) => ({ device, is_known: true, held_bytes: held, total_bytes: 3 * GIB, needed_bytes: needed, needed_held_bytes: held, plan_problem: "" });
const OPEN = { open: "/m/a.gguf", about: { where: null, settings: { ctx_tokens: 16_384, mmproj: "/m/p.gguf" },
  holdings: [holding("mac", GIB, GIB), holding("phone", 0, GIB), holding("spare", 0, 0), { ...holding("gone", 0, 0), is_known: false }] } };

test("details: what devices hold, the model's settings, and what can be done", () => {
  const seen = modelsView(state(OPEN, { models: [model("a", { reference: "o/r:Q4_K_M" })] }));
  assert.match(text(seen), /On the hub o\/r:Q4_K_M.*mac 1\.0 GiB, all that it needs phone nothing of 1\.0 GiB spare nothing, and a launch now needs none there gone it did not answer.*Settings of this model.*mmproj \/m\/p\.gguf/);
  assert.deepEqual(all(seen, "progress").map((each) => attribute(each, "value")), [100, 0, 0, 0]);
  assert.equal(buttons(seen, "models/push").length, 1);
  assert.equal(attribute(all(seen, "input").find((each) => attribute(each, "name") === "ctx_tokens"), "value"), 16_384);
  const whole = { ...OPEN, about: { ...OPEN.about, holdings: OPEN.about.holdings.slice(0, 1) } };
  assert.equal(buttons(modelsView(state(whole, { models: [model("a")] })), "models/push").length, 0, "there is nothing to send");
  const no = { ...OPEN, about: { ...OPEN.about, holdings: [{ ...holding("mac", 0, 0), plan_problem: "it does not fit" }] } };
  assert.match(text(modelsView(state(no, { models: [model("a")] }))), /Nothing can be sent ahead: It does not fit\./);
  const unknown = modelsView(state({ ...OPEN, about: { ...OPEN.about, holdings: null } }, { models: [model("a")] }));
  assert.deepEqual([buttons(unknown, "models/look").length, buttons(unknown, "models/push").length], [1, 1]);
});

test("answers about a model that is no longer open are dropped", () => {
  const open = after(initial, [["models/open", { path: "/m/a" }]]);
  assert.equal(after(open, [["models/about", { path: "/m/b", holdings: [] }]]), open);
  const known = after(open, [["models/about", { path: "/m/a", settings: {} }]]);
  assert.deepEqual([known.about.settings, known.form_no], [{}, 1], "a new form for other values");
  assert.equal(after(known, [["models/open", { path: "/m/b" }]]).about.settings, null);
});

test("work on a model: bars while it is sent, a verdict in its colour after", () => {
  const busy = { models: [model("a")], asks: { "model /m/a.gguf": { busy: true, error: "" } } };
  const rows = [{ device: "phone", state: "seeding", total_bytes: GIB, done_bytes: GIB / 2, sent_bytes: GIB / 2, bytes_per_s: 1024 ** 2, eta_s: 512 }];
  const work = { kind: "push", part: null, rows, tone: "good", said: "", notes: [] };
  const sending = modelsView(state({ ...OPEN, work: { "/m/a.gguf": work } }, busy));
  assert.match(text(sending), /phone 512 MiB of 1\.0 GiB · 1 MiB\/s · 8 min 32 s left.*Keep this page open.*Stop/);
  const told = [{ ...rows[0], state: "waiting", done_bytes: 0, total_bytes: 0 }, { ...rows[0], device: "spare", state: "lost", problem: "it went to sleep", note: "mac is of an older version" }];
  const others = text(modelsView(state({ ...OPEN, work: { "/m/a.gguf": { ...work, rows: told } } }, busy)));
  assert.match(others, /phone waits for another push.*spare 512 MiB of 1\.0 GiB.*It went to sleep\..*Mac is of an older version\./);
  const closed = text(modelsView(state({ work: { "/m/a.gguf": { ...work, kind: "verify", part: 0.42 } } }, busy)));
  assert.match(closed, /Each byte is read and compared\. +42 %/, "though its details are closed");
  const said = { ...work, kind: "verify", tone: "bad", said: "It is not as it was published.", notes: ["a.gguf: other bytes"] };
  const over = modelsView(state({ ...OPEN, work: { "/m/a.gguf": said } }, { models: [model("a")] }));
  assert.match(text(over), /It is not as it was published\. A\.gguf: other bytes|It is not as it was published\. a\.gguf: other bytes/);
  assert.ok(all(over, "div").some((each) => attribute(each, "class") === "message bad"));
});

test("removing tells first what goes, and offers nothing where it is refused", () => {
  const models = [model("a")];
  const asked = { asking: "/m/a.gguf" };
  const removal = { deletes: ["/m/a.gguf"], keeps: ["/m/b: a link"], freed_bytes: GIB, deployments: ["d"] };
  const seen = modelsView(state({ ...asked, removal }, { models }));
  assert.match(text(all(seen, "dialog")), /1\.0 GiB become free\. What goes: \/m\/a\.gguf What stays: \/m\/b: a link d cannot be started without it/);
  assert.equal(buttons(seen, "models/remove").length, 1);
  const refused = modelsView(state(asked, { models, asks: { "models/remove": { busy: false, error: "LM Studio keeps it" } } }));
  assert.match(text(all(refused, "dialog")), /LM Studio keeps it/);
  assert.equal(buttons(refused, "models/remove").length, 0);
  assert.equal(after({ ...initial, asking: "/m/b" }, [["models/removal", { path: "/m/a.gguf", removal }]]).removal, null);
});

// Pulls

test("a pull in words and its bar", () => {
  assert.equal(pullTitle(pull()), "b Q8_0");
  assert.equal(pullWords(pull()), "1.0 GiB of 4.0 GiB · 10 MiB/s · 5 min 7 s left");
  assert.equal(pullWords(pull({ state: "paused" })), "1.0 GiB of 4.0 GiB");
  assert.equal(pullWords(pull({ state: "done" })), "4.0 GiB, all there");
  assert.match(pullWords(pull({ state: "checking" })), /compared with the hub/);
  assert.equal(pullWords(pull({ state: "queued", total_bytes: 0 })), "waits for its turn");
  assert.equal(attribute(all(pullBar(pull()), "progress")[0], "value"), 25);
  assert.equal(all(pullBar(pull({ state: "failed", total_bytes: 0 })), "progress").length, 0);
});

test("addresses in a reason can be followed, and only those", () => {
  const parts = linked("accept them at https://hub.example/a/b, then try again: javascript:x http://x.");
  assert.deepEqual(all(parts, "a").map((each) => [attribute(each, "href"), attribute(each, "rel")]),
    [["https://hub.example/a/b", "noopener noreferrer"], ["http://x", "noopener noreferrer"]]);
  assert.equal(text(parts).replace(/ (?=[,.])/g, ""), "accept them at https://hub.example/a/b, then try again: javascript:x http://x.");
});

test("what can be done with a pull depends on its state; removing asks where something is lost", () => {
  const acts = (/** @type {string} */ is, own = {}) => {
    const seen = modelsView(state(own, { pulls: { p1: pull({ state: is, path: is === "done" ? "/m/b" : "", detail: is === "failed" ? "no room" : "" }) } }));
    return all(seen, "button").map((each) => attribute(each, "data-action").replace("models/", "")).join(" ");
  };
  assert.deepEqual(["queued", "fetching", "checking", "paused", "failed", "done"].map((is) => acts(is)),
    ["pause ask-drop", "pause ask-drop", "ask-drop", "resume ask-drop", "resume ask-drop", "drop launch"]);
  assert.equal(acts("fetching", { asking: "pull p1" }), "pause drop asked");
  assert.deepEqual(pullsInOrder({ a: pull({ state: "done" }), b: pull({ state: "failed" }), c: pull() }).map(({ state: is }) => is), ["failed", "fetching", "done"]);
});

test("pulls come with the snapshot and their events, and their end is announced once", () => {
  const page = reducer([]);
  const start = /** @type {any} */ ({ ...state({}), host: null, pulls: {}, requests: [], views: {}, announcement: "" });
  const begun = page(start, { type: "snapshot", data: { pulls: [pull()] } });
  assert.equal(begun.pulls.p1.state, "fetching");
  const done = page(begun, { type: "pull", data: pull({ state: "done" }) });
  assert.equal(done.announcement, "a/b-GGUF:Q8_0 is on this host.");
  assert.deepEqual(page(done, { type: "pull_removed", data: { id: "p1" } }).pulls, {});
  assert.equal(page(start, { type: "pull", data: pull() }), start, "before the first snapshot it has no place");
});

// Getting one

const GET = { view: "models", parts: ["get"] };
const REPO = { view: "models", parts: ["get", "a/b"] };

test("suggestions are asked for the repository in the address, else the task, unless the hub is searched", () => {
  const key = (/** @type {any} */ own, /** @type {any} */ more) => suggestWanted(state(own, more)).key;
  assert.equal(key({ task: "code" }, { route: GET }), "code 8192");
  assert.equal(key({ task: "code" }, { route: REPO }), "a/b 8192");
  assert.equal(key({ hub: { text: "gemma", repos: null } }, { route: GET }), "");
  assert.equal(key({ hub: { text: "gemma", repos: null } }, { route: REPO }), "a/b 8192");
  for (const more of [{}, { route: GET, connection: "disconnected" }, { route: { view: "chat", parts: ["get"] } }]) assert.equal(key({}, more), "");
});

test("the recommended one comes first with its reason, what does not fit last", () => {
  const suggestions = [suggestion("a/b:F16", { fit: fit({ fits: false, missing_bytes: GIB }) }), suggestion("a/b:Q8_0"),
    suggestion("a/b:Q4_K_M", { is_recommended: true, reason: "Q4_K_M: 1.0 GiB, 8,192 tokens fit; Q8_0 would be too slow" })];
  const own = { found: { key: "a/b 8192", step: "", part: null, answer: { suggestions, words: "", notes: ["two were left out"] } } };
  const pulls = { p1: pull({ reference: "a/b:Q8_0" }) };
  const seen = getView(state(own, { route: REPO, pulls }), state(own).views.models);
  assert.deepEqual(all(seen, "h4").map((each) => text(each).split(" ")[0]), ["Q4_K_M", "Q8_0", "F16"]);
  assert.match(text(seen), /recommended.*Q8_0 would be too slow\. Q8_0/);
  assert.doesNotMatch(text(seen), /Q4_K_M: 1\.0/, "the figures stand above");
  assert.match(text(seen), /It needs 1\.0 GiB more.*Two were left out/);
  assert.deepEqual(buttons(seen, "models/get").map((each) => attribute(each, "data-reference")), ["a/b:Q4_K_M", "a/b:F16"], "one comes already");
  assert.deepEqual(buttons(seen, "models/launch").map((each) => attribute(each, "data-model")), ["a/b:Q4_K_M", "a/b:Q8_0"]);
  const here = getView(state(own, { route: REPO, models: [model("q", { reference: "a/b:Q4_K_M" })] }), state(own).views.models);
  assert.equal(attribute(buttons(here, "models/launch")[0], "data-model"), "/m/q.gguf", "what is here is launched from here");
});

test("answers to another question are not shown, nor kept", () => {
  const answer = { suggestions: [suggestion("a/b:Q8_0")], words: "" };
  const own = after(initial, [["models/suggesting", { key: "new 8192" }], ["models/suggested", { key: "old 8192", answer }], ["models/suggest-step", { key: "old 8192", step: "x", part: 1 }]]);
  assert.deepEqual(own.found, { key: "new 8192", no: -1, step: "", part: null, answer: null });
  const stale = { found: { key: " 4096", step: "", part: null, answer } };
  assert.match(text(getView(state(stale, { route: GET }), state(stale).views.models)), /Looking what fits here/);
});

test("suggestions for the devices of before are shown until there are others", () => {
  const answer = { suggestions: [suggestion("a/b:Q8_0")], words: "" };
  const asked = after(initial, [["models/suggesting", { key: " 8192" }], ["models/suggested", { key: " 8192", no: 0, answer }]]);
  const world = state({}, { route: GET, devices: { d: { id: "d", state: "ready", used_by: null } } });
  const moved = after(asked, [["device", {}]], world);
  assert.deepEqual([suggestWanted({ ...world, views: { models: moved } }).no, moved.found.no], [1, 0], "they are of another question");
  const again = after(moved, [["models/suggesting", { key: " 8192" }]]);
  assert.equal(again.found.answer, answer);
  assert.equal(after(again, [["models/again", {}]]).found.answer, null);
  assert.equal(after(again, [["models/suggested", { key: " 8192", no: 1, answer }]]).found.no, 1);
});

test("estimates are marked, and the figures of the recommended one are not told twice", () => {
  const [said, reason] = [fit({ is_estimate: true, tokens_per_s: 0.6 }), "qwen3-0.6b, Q8_0: about 1.0 GiB, 8,192 tokens fit, about 10.2 tokens per second over one and two."];
  const own = { found: { key: " 8192", no: 0, step: "", part: null, answer: { suggestions: [suggestion("a/b:Q8_0", { fit: said, is_recommended: true, reason })], words: "" } } };
  const seen = text(getView(state(own, { route: GET }), state(own).views.models));
  assert.match(seen, /Q8_0 · ≈ 1\.0 GiB.*Fits with 8,192 tokens, ≈ 0\.6 tokens\/s/);
  assert.doesNotMatch(seen, /tokens fit|not checked/);
  const found = { key: "a/b 8192", no: 0, step: "", part: null, answer: { suggestions: [suggestion("a/b:Q8_0"), suggestion("a/b:Q4_0", { fit: fit({ is_checked: true }) })], words: "" } };
  assert.equal(text(getView(state({ found }, { route: REPO }), state({ found }).views.models)).match(/not checked by the engine/g)?.length, 1);
});

test("what has just come cannot be got again, though it is not listed yet", () => {
  const found = { key: "a/b 8192", no: 0, step: "", part: null, answer: { suggestions: [suggestion("a/b:Q8_0")], words: "" } };
  const gets = (/** @type {any} */ more) => buttons(getView(state({ found }, { route: REPO, ...more }), state({ found }).views.models), "models/get").length;
  const done = { p1: pull({ reference: "a/b:q8_0", repo: "a/b", state: "done" }) };
  assert.equal(gets({ pulls: done, asks: { models: { busy: true, error: "" } } }), 0);
  assert.equal(gets({ pulls: done }), 1, "it was removed since");
  assert.equal(gets({ pulls: { p1: { ...done.p1, state: "paused" } } }), 0, "by whatever name it is fetched");
});

test("a refusal of the hub is told once, with the link to follow", () => {
  const asks = { "models/suggest": { busy: false, error: "accept its terms at https://hub.example/a/b, then log in" }, "models/hub": { busy: false, error: "too late" } };
  const world = state({ hub: { text: "b", repos: null } }, { route: REPO, asks });
  const seen = getView(world, world.views.models);
  assert.deepEqual(all(seen, "a").map((each) => attribute(each, "href")).filter((href) => href.startsWith("http")), ["https://hub.example/a/b"]);
  assert.doesNotMatch(text(seen), /too late/);
  assert.match(text(getView({ ...world, route: GET }, world.views.models)), /too late/);
});

test("where nothing fits it is told what would have to change", () => {
  const own = { found: { key: " 8192", step: "", part: null, answer: { suggestions: [suggestion("a/b:F16", { fit: fit({ fits: false, reason: "no" }) })], words: "Nothing fits; add a device." } } };
  assert.match(text(getView(state(own, { route: GET }), state(own).views.models)), /Nothing fits; add a device/);
});
