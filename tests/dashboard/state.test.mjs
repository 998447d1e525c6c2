// @ts-check
import assert from "node:assert/strict";
import { test } from "node:test";

import { initial, reduce } from "../../dashboard/state.mjs";

const SERVER = "2026-01-01T00:00:00Z";
const SERVER_MS = Date.parse(SERVER);
const LOCAL_MS = SERVER_MS - 5000; // this browser's clock is five seconds behind

/** @param {string} id @param {object} [more] */
const device = (id, more) => ({ id, name: `name-${id}`, state: "ready", reason: "", silent_s: 2, ...more });
/** @param {string} id @param {object} [more] */
const deployment = (id, more) =>
  ({ id, spec: { name: id, model: "/m.gguf" }, state: "ready", reason: "", launch_id: 1, ...more });
/** @param {object} [more] */
const snapshot = (more) => ({
  version: "0.1.0", main_host: "desk", url: "http://desk:8100", time: SERVER, engine: { build: "b1" },
  devices: [device("a"), device("b")], deployments: [deployment("x")], ...more,
});

/** @param {any} state @param {...[string, any?, number?]} events */
const after = (state, ...events) =>
  events.reduce((held, [type, data, at_ms = LOCAL_MS]) => reduce(held, { type, data, at_ms }), state);
const connected = after(initial, ["snapshot", snapshot()]);

test("a snapshot brings host, devices and deployments", () => {
  assert.equal(connected.connection, "connected");
  assert.deepEqual(Object.keys(connected.devices), ["a", "b"]);
  assert.deepEqual(Object.keys(connected.deployments), ["x"]);
  assert.equal(connected.host.main_host, "desk");
  assert.equal("devices" in connected.host, false);
  assert.equal(connected.announcement, "");
});

test("ages go by the main host's clock", () => {
  assert.equal(connected.skew_ms, 5000);
  assert.equal(connected.updated_ms, SERVER_MS);
  assert.equal(connected.heard_ms.a, SERVER_MS - 2000);
  const later = after(connected, ["device", device("a", { silent_s: 1 }), LOCAL_MS + 10_000]);
  assert.equal(later.updated_ms, SERVER_MS + 10_000);
  assert.equal(later.heard_ms.a, SERVER_MS + 9000);
  assert.equal(after(initial, ["snapshot", snapshot({ time: undefined })]).skew_ms, 0);
});

test("device: adds, replaces, and announces only a change of state", () => {
  const added = after(connected, ["device", device("c")]);
  assert.deepEqual(Object.keys(added.devices), ["a", "b", "c"]);
  assert.equal(added.announcement, "name-c is ready.");
  const beat = after(connected, ["device", device("a", { round_trip_ms: 3 })]);
  assert.equal(beat.devices.a.round_trip_ms, 3);
  assert.equal(beat.announcement, "");
  const lost = after(connected, ["device", device("a", { state: "lost", reason: "last heard of 30 s ago" })]);
  assert.equal(lost.announcement, "name-a is lost: last heard of 30 s ago.");
});

test("device_removed", () => {
  const removed = after(connected, ["device_removed", { id: "a" }]);
  assert.deepEqual(Object.keys(removed.devices), ["b"]);
  assert.deepEqual(Object.keys(removed.heard_ms), ["b"]);
  assert.equal(removed.announcement, "name-a was removed.");
});

test("deployment: adds, replaces, and announces only a change of state", () => {
  const added = after(connected, ["deployment", deployment("y", { state: "pending" })]);
  assert.deepEqual(Object.keys(added.deployments), ["x", "y"]);
  assert.equal(added.announcement, "y is pending.");
  const progress = after(added, ["deployment", deployment("y", { state: "pending", phase: "plan" })]);
  assert.equal(progress.deployments.y.phase, "plan");
  assert.equal(progress.announcement, added.announcement);
  const failed = after(added, ["deployment", deployment("y", { state: "failed", reason: "Out of memory." })]);
  assert.equal(failed.announcement, "y is failed: Out of memory.");
});

test("deployment_removed takes along what was open for it", () => {
  const open = after(connected,
    ["action", { id: "x", error: "no" }], ["commands_opened", { id: "x", launch_id: 1 }], ["logs_opened", { id: "x", process: "p" }]);
  const removed = after(open, ["deployment_removed", { id: "x" }]);
  for (const rows of ["deployments", "actions", "commands", "logs"]) assert.deepEqual(removed[rows], {}, rows);
  assert.equal(removed.announcement, "x was removed.");
});

test("a lost connection keeps the last rows", () => {
  const lost = after(connected, ["disconnected", undefined, LOCAL_MS + 60_000]);
  assert.equal(lost.connection, "disconnected");
  assert.equal(lost.devices, connected.devices);
  assert.equal(lost.updated_ms, connected.updated_ms);
  assert.equal(lost.announcement, "Disconnected.");
  assert.equal(after(lost, ["disconnected"]), lost, "each further attempt that fails changes nothing");
});

test("a reconnect replaces all rows and keeps open panels of what is still there", () => {
  const before = after(connected,
    ["deployment", deployment("y")], ["logs_opened", { id: "x", process: "p" }], ["logs_opened", { id: "y", process: "p" }],
    ["disconnected"]);
  const back = after(before, ["snapshot", snapshot({ devices: [device("b")] })]);
  assert.equal(back.connection, "connected");
  assert.deepEqual(Object.keys(back.devices), ["b"]);
  assert.deepEqual(Object.keys(back.heard_ms), ["b"]);
  assert.deepEqual(Object.keys(back.deployments), ["x"]);
  assert.deepEqual(Object.keys(back.logs), ["x"]);
  assert.equal(back.announcement, "Connected again.");
});

test("events that this page does not know change nothing", () => {
  for (const type of ["plan_changed", "constructor", "__proto__", "toString", ""]) {
    assert.equal(after(connected, [type, { id: "a" }]), connected, type);
  }
});

test("out of order: rows before the first snapshot, without an id, or already removed", () => {
  assert.equal(after(initial, ["device", device("a")]), initial);
  assert.equal(after(initial, ["deployment", deployment("x")]), initial);
  for (const type of ["device", "deployment", "device_removed", "deployment_removed"]) {
    assert.equal(after(connected, [type, {}]), connected, type);
    assert.equal(after(connected, [type]), connected, `${type} without data`);
  }
  assert.equal(after(connected, ["device_removed", { id: "zz" }]), connected);
  assert.equal(after(connected, ["deployment_removed", { id: "zz" }]), connected);
  const gone = after(connected, ["deployment_removed", { id: "x" }]);
  assert.equal(after(gone, ["action", { id: "x", error: "late" }]), gone);
  assert.equal(after(gone, ["commands", { id: "x", launch_id: 1 }]), gone);
  assert.equal(after(gone, ["log_chunk", { id: "x", from: -1, chunk: {} }]), gone);
});

test("the state before an event is never changed", () => {
  const text = JSON.stringify(connected);
  after(connected, ["device", device("a", { state: "lost" })], ["deployment_removed", { id: "x" }], ["snapshot", snapshot()]);
  assert.equal(JSON.stringify(connected), text);
});

test("a missing key signs out until the key is accepted", () => {
  const out = after(connected, ["key_required"], ["disconnected"]);
  assert.equal(out.connection, "signed_out");
  const refused = after(out, ["sign_in", { busy: true }], ["sign_in", { error: "That key is not right." }]);
  assert.deepEqual(refused.sign_in, { busy: false, error: "That key is not right." });
  const accepted = after(refused, ["signed_in"]);
  assert.equal(accepted.connection, "connecting");
  assert.deepEqual(accepted.sign_in, { busy: false, error: "" });
});

test("the launch form shows one request at a time", () => {
  const sent = after(connected, ["launch", { busy: true }]);
  assert.equal(sent.launch.busy, true);
  const refused = after(sent, ["launch", { error: "no such file" }]);
  assert.deepEqual(refused.launch, { busy: false, error: "no such file" });
  assert.deepEqual(after(refused, ["launch", {}]).launch, { busy: false, error: "" });
});

test("a refused action is shown until its deployment moves on", () => {
  const refused = after(connected, ["action", { id: "x", error: "not now" }]);
  assert.equal(refused.actions.x.error, "not now");
  assert.equal(after(refused, ["deployment", deployment("x")]).actions.x.error, "not now");
  assert.deepEqual(after(refused, ["deployment", deployment("x", { state: "stopping" })]).actions, {});
});

test("join code: asked for, given, refused", () => {
  const join = { code: "K", command: "curl", expires_at: SERVER };
  const given = after(connected, ["join", { join }]);
  assert.deepEqual(given.join, join);
  assert.equal(after(given, ["join"]).join, null, "asking again forgets the old code");
  assert.equal(after(given, ["join", { error: "no" }]).join_error, "no");
});

test("commands of a launch that was followed by another come too late", () => {
  const open = after(connected, ["commands_opened", { id: "x", launch_id: 1 }]);
  const answer = { id: "x", launch_id: 1, record: { environment: {}, workers: [] }, commands: [{ host: "h", command: "c" }] };
  assert.equal(after(open, ["commands", answer]).commands.x.commands.length, 1);
  const next = after(open, ["commands_opened", { id: "x", launch_id: 2 }]);
  assert.equal(after(next, ["commands", answer]), next);
  assert.deepEqual(after(next, ["commands_closed", { id: "x" }]).commands, {});
  assert.equal(after(next, ["commands", { id: "x", launch_id: 2, error: "gone" }]).commands.x.error, "gone");
});

/** @param {number} from @param {object} [chunk] */
const chunk = (from, chunk) =>
  ({ id: "x", from, chunk: { process: "llama-server", file: "/l/1.log", offset: 10, text: "one\n", ...chunk } });
const reading = after(connected, ["logs_opened", { id: "x", process: "llama-server" }], ["log_chunk", chunk(-1)]);

test("log chunks are appended in order", () => {
  assert.equal(reading.logs.x.text, "one\n");
  const more = after(reading, ["log_chunk", chunk(10, { offset: 14, text: "two\n" })]);
  assert.equal(more.logs.x.text, "one\ntwo\n");
  assert.equal(more.logs.x.offset, 14);
});

test("a log chunk that was asked for twice, or of another process, is dropped", () => {
  assert.equal(after(reading, ["log_chunk", chunk(-1)]).logs.x, reading.logs.x);
  const other = after(reading, ["logs_opened", { id: "x", process: "pixel-8" }]);
  assert.equal(after(other, ["log_chunk", chunk(-1)]).logs.x, other.logs.x);
  assert.equal(after(other, ["log_failed", { id: "x", process: "llama-server", error: "late" }]).logs.x.error, "");
});

test("another file is another launch: the log begins anew, following as before", () => {
  const still = after(reading, ["logs_follow", { id: "x", follow: false }]);
  const renewed = after(still, ["log_chunk", chunk(10, { file: "/l/2.log", text: "middle" })]);
  assert.deepEqual(renewed.logs.x, { process: "llama-server", follow: false, file: "", offset: -1, text: "", error: "" });
});

test("a failed read is shown, and forgotten when the next one succeeds", () => {
  const failed = after(reading, ["log_failed", { id: "x", process: "llama-server", error: "no answer" }]);
  assert.equal(failed.logs.x.error, "no answer");
  assert.equal(failed.logs.x.text, "one\n");
  assert.equal(after(failed, ["log_chunk", chunk(10)]).logs.x.error, "");
});

test("a long log keeps its end", () => {
  const long = after(reading, ["log_chunk", chunk(10, { text: `${"x".repeat(250_000)}end` })]);
  assert.equal(long.logs.x.text.length, 200_000);
  assert.ok(long.logs.x.text.endsWith("end"));
});

test("copied is announced once", () => {
  const copied = after(connected, ["copied", { key: "join-command" }]);
  assert.equal(copied.announcement, "Copied.");
  assert.deepEqual(after(copied, ["copied", { key: "" }]).copied, "");
});
