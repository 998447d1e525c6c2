// @ts-check
import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:http";
import { after, before, test } from "node:test";

import { chatActions } from "../../dashboard/chat/actions.mjs";
import { choices, numbers, pieceOf, recordOf, refusalOf, requestOf, target, waitWords } from "../../dashboard/chat/answer.mjs";
import { initial, reduce, running } from "../../dashboard/chat/state.mjs";
import { render } from "../../dashboard/chat/view.mjs";

/** @param {string} id @param {object} [more] @returns {any} */
const deployment = (id, more) => ({ id, spec: { name: id, model: "/m.gguf" }, state: "ready", loads: [], ...more });
/** @param {any} chat @param {...[string, any?, number?]} events @returns {any} */
const next = (chat, ...events) => events.reduce((held, [type, data = {}, at_ms = 1000]) => reduce(held, { type, data, at_ms }), chat);
/** @param {any} node @returns {string} */
const words = (node) => (typeof node === "string" ? node : !node || typeof node !== "object" ? "" : Array.isArray(node) ? node.map(words).join(" ")
  : "make" in node ? words(node.make()) : node.children.map(words).join(" "));
const asked = next(initial, ["chat/ask", { text: "Hi", deployment: "gem" }]);
const done = next(asked, ["chat/more", { run: 1, first_ms: 1200, text: "Yes", thought: "" }], ["chat/end", { run: 1, phase: "done" }, 2000]);

// State

test("an answer grows, and keeps its numbers", () => {
  assert.equal(running(asked)?.phase, "waiting");
  const grown = next(asked, ["chat/more", { run: 1, first_ms: 1500, text: "", thought: "hm" }], ["chat/more", { run: 1, first_ms: 1500, text: "Yes", thought: "" }]);
  assert.deepEqual([running(grown)?.phase, running(grown)?.text, running(grown)?.thought, running(grown)?.first_ms], ["answering", "Yes", "hm", 1500]);
  const usage = { prompt_tokens: 3, completion_tokens: 9 };
  const ended = next(grown, ["chat/end", { run: 1, phase: "done", finish: "stop", usage, timings: null, refusal: null }, 3000]);
  assert.equal(running(ended), null);
  assert.deepEqual([ended.turns[0].answer.ended_ms, ended.turns[0].answer.usage], [3000, usage]);
});

test("asking anew replaces the last answer, and late words about the old one are dropped", () => {
  const again = next(done, ["chat/again", { deployment: "other" }, 5000]);
  assert.deepEqual(again.turns.map((/** @type {any} */ turn) => [turn.asked, turn.deployment, turn.answer.run, turn.answer.text]), [["Hi", "other", 2, ""]]);
  assert.equal(next(again, ["chat/more", { run: 1, first_ms: 1, text: "late", thought: "" }], ["chat/end", { run: 1, phase: "stopped" }]), again);
  const cleared = next(again, ["chat/clear"]);
  assert.deepEqual(cleared.turns, []);
  assert.equal(next(cleared, ["chat/more", { run: 2, first_ms: 1, text: "late", thought: "" }]), cleared);
  assert.equal(next(cleared, ["chat/ask", { text: "x", deployment: "gem" }]).turns[0].answer.run, 3);
});

// What is sent and said

test("a ready deployment is taken, unless another one is chosen", () => {
  const all = { a: deployment("a", { state: "stopped" }), b: deployment("b", { state: "starting" }), c: deployment("c"), d: deployment("d", { state: "stopped", spec: { name: "d", on_demand: true } }) };
  assert.deepEqual(choices(all).map(({ deployment: { id }, isOpen }) => [id, isOpen]), [["a", false], ["b", true], ["c", true], ["d", true]]);
  assert.equal(target(all, "")?.id, "c");
  assert.equal(target(all, "b")?.id, "b");
  assert.equal(target(all, "gone")?.id, "c");
  assert.equal(target({ a: all.a, b: all.b }, "")?.id, "b");
  assert.equal(target({ a: all.a }, ""), null);
});

test("a request has the talk so far, without what was not answered", () => {
  const failed = next(done, ["chat/ask", { text: "Lost", deployment: "gem" }], ["chat/end", { run: 2, phase: "failed" }], ["chat/ask", { text: "And?", deployment: "gem" }]);
  const body = requestOf(failed.turns, { system: " Be brief. ", temperature: "0", max_tokens: "50" });
  assert.deepEqual(body.messages, [{ role: "system", content: "Be brief." }, { role: "user", content: "Hi" }, { role: "assistant", content: "Yes" }, { role: "user", content: "And?" }]);
  assert.deepEqual([body.model, body.stream, body.stream_options, body.temperature, body.max_tokens], ["gem", true, { include_usage: true }, 0, 50]);
  const plain = requestOf(asked.turns, { temperature: "", max_tokens: "x" });
  assert.equal(JSON.parse(JSON.stringify(plain)).temperature, undefined);
  assert.equal(plain.max_tokens, undefined);
  assert.deepEqual(requestOf(next(done, ["chat/again", { deployment: "gem" }]).turns, {}).messages, [{ role: "user", content: "Hi" }]);
});

test("events of the stream", () => {
  assert.deepEqual(pieceOf('{"choices":[{"delta":{"content":"a","reasoning_content":"b"},"finish_reason":null}]}'),
    { text: "a", thought: "b", finish: "", usage: null, timings: null, refusal: null });
  assert.equal(pieceOf('{"choices":[],"usage":{"completion_tokens":2},"timings":{"predicted_n":2}}')?.usage.completion_tokens, 2);
  assert.deepEqual(pieceOf('{"choices":[{"delta":{"content":null},"finish_reason":"length"}]}')?.finish, "length");
  assert.equal(pieceOf('{"error":{"message":"gone","code":"answer_lost"}}')?.refusal?.code, "answer_lost");
  for (const odd of ["[DONE]", "", "{", "null", "3", '"x"', "{}", '{"choices":"x"}']) pieceOf(odd);
  assert.equal(pieceOf("[DONE]"), null);
});

test("why it waits is said", () => {
  const { answer } = asked.turns[0];
  const loading = deployment("gem", { state: "starting", loads: [{ weight_bytes: 300, loaded_bytes: 129 }, { weight_bytes: 0, loaded_bytes: 0 }] });
  assert.equal(waitWords(answer, loading, undefined), "Waits until gem is ready (43 %).");
  assert.equal(waitWords(answer, deployment("gem", { state: "backoff" }), undefined), "Waits until gem is ready.");
  assert.equal(waitWords({ ...answer, phase: "answering", text: "a" }, loading, undefined), "Goes on when gem is ready again (43 %).");
  assert.equal(waitWords(answer, deployment("gem"), { deployment: "gem", active: 1, waiting: 2, slots: 1 }), "Waits for a free slot of gem; 2 requests wait.");
  assert.equal(waitWords(answer, deployment("gem"), { deployment: "gem", active: 1, waiting: 0, slots: 1 }), "Reads the prompt…");
  assert.equal(waitWords({ ...answer, phase: "answering", text: "a" }, deployment("gem"), undefined), "");
  assert.equal(waitWords({ ...answer, phase: "done" }, loading, undefined), "");
  assert.equal(waitWords(answer, undefined, undefined), "");
});

test("the numbers of an answer", () => {
  const answer = { ...done.turns[0].answer, sent_ms: 1000, first_ms: 1400, ended_ms: 3400, usage: { prompt_tokens: 20, completion_tokens: 41 } };
  assert.deepEqual(numbers(answer, null), ["first token after 400 ms", "20.0 tokens/s", "41 tokens", "20 prompt tokens"]);
  const timings = { predicted_n: 41, predicted_per_second: 22.44, cache_n: 12 };
  assert.deepEqual(numbers({ ...answer, timings }, null).slice(1), ["22.4 tokens/s", "41 tokens", "20 prompt tokens, 12 of them kept from before"]);
  // After a loss, the timings are those of the last part.
  const record = /** @type {any} */ ({ resumed: 1 });
  assert.deepEqual(numbers({ ...answer, timings: { ...timings, predicted_n: 5, cache_n: 0 } }, record), ["first token after 400 ms", "20.0 tokens/s", "41 tokens", "20 prompt tokens", "continued after a worker was lost"]);
  assert.deepEqual(numbers({ ...answer, phase: "stopped", usage: null }, null), ["first token after 400 ms", "stopped by you"]);
  assert.ok(numbers({ ...answer, finish: "length" }, null).includes("cut off at the most tokens that were allowed"));
  assert.deepEqual(numbers({ ...answer, phase: "stopped", first_ms: null, usage: null }, null), ["stopped by you"]);
  assert.deepEqual(numbers(asked.turns[0].answer, null), []);
});

test("its record is the nearest one of this deployment and route", () => {
  const at = (/** @type {number} */ ms, /** @type {object} */ more = {}) => /** @type {any} */ ({ at: new Date(ms).toISOString(), deployment: "gem", path: "/v1/chat/completions", is_stream: true, ...more });
  const right = at(8100);
  const others = [at(9500), at(8000, { deployment: "other" }), at(8000, { path: "/completion" }), at(8000, { is_stream: false })];
  assert.equal(recordOf(done.turns[0], [...others, right], 7000), right); // sent at 1000, our clock 7 s behind
  assert.equal(recordOf(done.turns[0], [at(20_000)], 7000), null);
  assert.equal(recordOf(done.turns[0], [at(8000, { at: "" })], 7000), null);
});

// What is seen

/** @param {any} chat @param {object} [more] @returns {any} */
const state = (chat, more) => ({ deployments: { gem: deployment("gem") }, traffic: {}, requests: [], skew_ms: 0, copied: "", asks: {}, who: { caller: "local", scopes: ["inference"], is_keyless: true }, views: { chat }, ...more });

test("without a deployment, and without the scope, it says what to do", () => {
  assert.match(words(render(state(initial))), /Ask something/);
  assert.match(words(render(state(initial, { deployments: {} }))), /Launch a model/);
  assert.match(words(render(state(initial, { who: { caller: "a", scopes: ["read"], is_keyless: false } }))), /not good for inference/);
});

test("a refusal is shown as the gateway gave it", () => {
  const refusal = refusalOf({ message: "this request may wait 30 s; gem is starting", code: "waited_too_long",
    supervisor: { state: "starting", progress: 0.42, retry_after_s: 71, cause: "pixel-8 was lost" } }, { status: 503 });
  const text = words(render(state(next(asked, ["chat/end", { run: 1, phase: "failed", refusal }]))));
  assert.match(text, /This request may wait 30 s; gem is starting\./);
  assert.match(text, /pixel-8 was lost/);
  assert.match(text, /HTTP 503 · waited_too_long · starting · 42 % loaded · try again in 1 min 11 s/);
  words(render(state(next(asked, ["chat/end", { run: 1, phase: "failed", refusal: refusalOf({ detail: "" }) }]))));
});

// The whole way, against a server on a socket

/** @type {(request: any, response: import("node:http").ServerResponse) => unknown} */
let answer = () => {};
const server = createServer(async (request, response) => {
  let text = "";
  for await (const part of request) text += part;
  answer({ path: request.url, body: JSON.parse(text), request }, response);
});
const browserFetch = globalThis.fetch;

before(async () => {
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = /** @type {import("node:net").AddressInfo} */ (server.address());
  globalThis.fetch = (path, options) => browserFetch(`http://127.0.0.1:${port}${path}`, options); // as a page does it
  globalThis.requestAnimationFrame = (draw) => Number(setTimeout(draw, 5));
  globalThis.cancelAnimationFrame = (frame) => clearTimeout(frame);
});
after(() => {
  globalThis.fetch = browserFetch;
  server.closeAllConnections();
  server.close();
});

/** A page that holds the chat's part alone. */
function aPage() {
  /** @type {[string, any][]} */
  const events = [];
  let whole = state(initial);
  const page = /** @type {any} */ ({
    events,
    state: () => whole,
    signedOut: () => events.push(["signed out", null]),
    dispatch(/** @type {string} */ type, /** @type {any} */ data) {
      events.push([type, data]);
      whole = state(reduce(whole.views.chat, { type, data: data ?? {}, at_ms: Date.now() }));
    },
    answer: () => whole.views.chat.turns[0]?.answer,
    async ended() {
      while (running(whole.views.chat)) await new Promise((resolve) => setTimeout(resolve, 5));
      return page.answer();
    },
    ask(/** @type {string} */ text) {
      const box = { value: text };
      chatActions["chat/send"](page, { elements: { message: box } }, {}, null);
      assert.equal(box.value, "");
    },
  });
  return page;
}
/** @param {any} response @param {...any} events */
const tell = (response, ...events) => events.forEach((event) => response.write(typeof event === "string" ? event : `data: ${JSON.stringify(event)}\n\n`));
const piece = (/** @type {string} */ content, /** @type {string | null} */ finish_reason = null) => ({ choices: [{ delta: { content }, finish_reason }] });

test("an answer streams in, in few steps", async () => {
  const page = aPage();
  /** @type {any} */
  let got;
  answer = (request, response) => {
    got = request;
    tell(response, ": gem is starting\n\n", ...Array.from({ length: 200 }, () => piece("ab ")), piece("", "stop"), { choices: [], usage: { prompt_tokens: 4, completion_tokens: 200 } }, "data: [DONE]\n\n");
    response.end();
  };
  page.ask("Go\n");
  page.ask(""); // and nothing more while it runs
  const ended = await page.ended();
  assert.equal(got.path, "/v1/chat/completions");
  assert.deepEqual(got.body.messages, [{ role: "user", content: "Go" }]);
  assert.deepEqual([ended.phase, ended.text, ended.finish, ended.usage.completion_tokens], ["done", "ab ".repeat(200), "stop", 200]);
  assert.ok(ended.first_ms >= ended.sent_ms);
  const steps = page.events.filter((/** @type {any} */ [type]) => type === "chat/more").length;
  assert.ok(steps >= 1 && steps < 100, `${steps} steps`);
});

test("stop ends the request, and keeps what came", async () => {
  const page = aPage();
  const left = new Promise((resolve) => {
    answer = (/** @type {any} */ { request }, /** @type {any} */ response) => {
      request.socket.on("close", resolve);
      tell(response, piece("half"));
    };
  });
  page.ask("Go");
  while (page.answer().text !== "half") await new Promise((resolve) => setTimeout(resolve, 5));
  chatActions["chat/stop"](page, null, {}, null);
  const ended = await page.ended();
  assert.deepEqual([ended.phase, ended.text, ended.refusal], ["stopped", "half", null]);
  await left;
});

test("clearing drops the answer that is on its way", async () => {
  const page = aPage();
  answer = (_, response) => tell(response, piece("half"));
  page.ask("Go");
  while (page.answer().text !== "half") await new Promise((resolve) => setTimeout(resolve, 5));
  chatActions["chat/clear"](page, null, {}, null);
  while (!page.events.some((/** @type {any} */ [type]) => type === "chat/end")) await new Promise((resolve) => setTimeout(resolve, 5));
  assert.deepEqual(page.state().views.chat.turns, []);
});

test("refusals, errors in the stream and cut streams are told apart", async () => {
  const refused = { error: { message: "may wait 30 s", type: "server_error", code: "waited_too_long", supervisor: { state: "starting", progress: 0.5 } } };
  /** @type {[(response: any) => unknown, number, string, RegExp, string][]} */
  const cases = [
    [(response) => response.writeHead(503, { "Content-Type": "application/json", "Retry-After": "9" }).end(JSON.stringify(refused)), 503, "waited_too_long", /may wait 30 s/, ""],
    [(response) => (tell(response, piece("half"), { error: { message: "cannot be continued", code: "answer_lost" } }, "data: [DONE]\n\n"), response.end()), 0, "answer_lost", /cannot be continued/, "half"],
    [(response) => (tell(response, piece("half")), response.end()), 0, "", /ended in the middle/, "half"],
    [(response) => (tell(response, piece("half")), setTimeout(() => response.destroy(), 20)), 0, "", /ended in the middle/, "half"],
    [(response) => response.writeHead(502).end("<html>"), 502, "", /answered 502/, ""],
    [(response) => response.destroy(), 0, "unreachable", /does not answer/, ""],
  ];
  for (const [how, status, code, detail, text] of cases) {
    const page = aPage();
    answer = (_, response) => how(response);
    page.ask("Go");
    const ended = await page.ended();
    assert.deepEqual([ended.phase, ended.refusal.status, ended.refusal.code, ended.text], ["failed", status, code, text]);
    assert.match(ended.refusal.detail, detail);
    assert.equal(code === "waited_too_long" ? ended.refusal.supervisor.progress : 0.5, 0.5);
  }
});

test("without a key the sign-in form is shown", async () => {
  const page = aPage();
  answer = (_, response) => response.writeHead(401).end(JSON.stringify({ error: { code: "key_required", message: "a key is needed" } }));
  page.ask("Go");
  await page.ended();
  assert.ok(page.events.some((/** @type {any} */ [type]) => type === "signed out"));
});
