// @ts-check
import assert from "node:assert/strict";
import { test } from "node:test";

import { eventsOf } from "../../dashboard/api.mjs";

/** An answer whose bytes come in these pieces. @param {...(string | Uint8Array)} pieces */
function answer(...pieces) {
  const encoder = new TextEncoder();
  let isEnded = false;
  const body = new ReadableStream({
    start(controller) {
      for (const piece of pieces) controller.enqueue(typeof piece === "string" ? encoder.encode(piece) : piece);
      if (pieces.at(-1) !== "") controller.close(); // an empty last piece: the stream stays open
    },
    cancel() { isEnded = true; },
  });
  return { response: new Response(body), isEnded: () => isEnded };
}

/** @param {...(string | Uint8Array)} pieces */
async function events(...pieces) {
  const found = [];
  for await (const event of eventsOf(answer(...pieces).response)) found.push(event);
  return found;
}

test("events have a type and data", async () => {
  assert.deepEqual(await events('event: progress\ndata: {"part": 0.5}\n\nevent: result\ndata: {}\n\n'), [
    { type: "progress", data: '{"part": 0.5}' }, { type: "result", data: "{}" },
  ]);
});

test("without a type it is a message; of data only the first space goes", async () => {
  assert.deepEqual(await events("data:  two\n\ndata:none\n\n"), [{ type: "message", data: " two" }, { type: "message", data: "none" }]);
});

test("lines of data are joined; comments, ids and events without data are nothing", async () => {
  assert.deepEqual(await events(": hello\n\nid: 4\ndata: a\ndata: b\n\nevent: empty\n\n"), [{ type: "message", data: "a\nb" }]);
});

test("lines may end in CR LF", async () => {
  assert.deepEqual(await events("event: a\r\ndata: 1\r\n\r\ndata: 2\r\n\r\n"), [{ type: "a", data: "1" }, { type: "message", data: "2" }]);
});

test("pieces may end anywhere, within a character too", async () => {
  const bytes = new TextEncoder().encode("event: näme\ndata: größe €\n\ndata: end\n\n");
  const wanted = [{ type: "näme", data: "größe €" }, { type: "message", data: "end" }];
  for (let at = 1; at < bytes.length; at++) assert.deepEqual(await events(bytes.slice(0, at), bytes.slice(at)), wanted, `cut at ${at}`);
  assert.deepEqual(await events(...Array.from(bytes, (byte) => Uint8Array.of(byte))), wanted);
});

test("the last event counts without an empty line behind it, as an aborted answer ends", async () => {
  assert.deepEqual(await events("data: a\n\ndata: b"), [{ type: "message", data: "a" }, { type: "message", data: "b" }]);
});

test("who leaves early ends the stream", async () => {
  const { response, isEnded } = answer("data: a\n\ndata: b\n\n", "");
  for await (const { data } of eventsOf(response)) {
    assert.equal(data, "a");
    break;
  }
  assert.ok(isEnded());
});
