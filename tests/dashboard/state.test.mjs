// @ts-check
import assert from "node:assert/strict";
import { test } from "node:test";

import { ask, IDLE, initialState, reducer } from "../../dashboard/state.mjs";

const SERVER = "2026-01-01T00:00:00Z";
const SERVER_MS = Date.parse(SERVER);
const LOCAL_MS = SERVER_MS - 5000; // this browser's clock is five seconds behind

/** A view that counts what it sees. @type {any} */
const counter = {
  name: "counter", initial: { devices: 0 },
  reduce: (/** @type {any} */ own, /** @type {any} */ { type, data }, /** @type {any} */ state) =>
    (type === "counter/add" ? { devices: own.devices + data.by } : type === "device" && state.host ? { devices: Object.keys(state.devices).length } : own),
};
/** @type {any} */
const still = { name: "still", initial: {}, reduce: (/** @type {any} */ own) => own };
const initial = initialState([counter, still]);
const reduce = reducer([counter, still]);

/** @param {string} id @param {object} [more] */
const device = (id, more) => ({ id, name: `name-${id}`, state: "ready", reason: "", silent_s: 2, ...more });
/** @param {string} id @param {object} [more] */
const deployment = (id, more) =>
  ({ id, spec: { name: id, model: "/m.gguf" }, state: "ready", reason: "", launch_id: 1, ...more });
/** @param {string} id @param {number} total_s */
const record = (id, total_s) => ({ at: SERVER, deployment: id, total_s });
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

test("deployment_removed takes along what belongs to it", () => {
  const open = after(connected, ["ask", { key: "deployment x", error: "no" }], ["traffic", { deployment: "x", active: 1, waiting: 0, slots: 2 }]);
  const removed = after(open, ["deployment_removed", { id: "x" }]);
  for (const rows of ["deployments", "traffic", "asks"]) assert.deepEqual(removed[rows], {}, rows);
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

test("a reconnect replaces all rows", () => {
  const before = after(connected,
    ["deployment", deployment("y")], ["traffic", { deployment: "y", active: 1, waiting: 0, slots: 1 }], ["request", record("y", 1)], ["disconnected"]);
  const back = after(before, ["snapshot", snapshot({ devices: [device("b")], requests: [record("x", 2)] })]);
  assert.equal(back.connection, "connected");
  assert.deepEqual(Object.keys(back.devices), ["b"]);
  assert.deepEqual(Object.keys(back.heard_ms), ["b"]);
  assert.deepEqual(Object.keys(back.deployments), ["x"]);
  assert.deepEqual(back.traffic, {});
  assert.deepEqual(back.requests, [record("x", 2)]);
  assert.equal(back.announcement, "Connected again.");
});

test("requests: the newest first, and no more than are worth keeping", () => {
  const two = after(connected, ["request", record("x", 1)], ["request", record("x", 2)]);
  assert.deepEqual(two.requests.map((/** @type {any} */ each) => each.total_s), [2, 1]);
  const many = Array.from({ length: 300 }, (_, index) => /** @type {[string, any]} */ (["request", record("x", index)]));
  const full = after(connected, ...many);
  assert.equal(full.requests.length, 200);
  assert.equal(full.requests[0].total_s, 299);
});

test("traffic replaces the row of its deployment", () => {
  const row = { deployment: "x", active: 1, waiting: 0, slots: 2 };
  const busy = after(connected, ["traffic", row], ["traffic", { ...row, deployment: "y" }], ["traffic", { ...row, waiting: 3 }]);
  assert.deepEqual(busy.traffic, { x: { ...row, waiting: 3 }, y: { ...row, deployment: "y" } });
  assert.deepEqual(after(initial, ["snapshot", snapshot({ traffic: [row] })]).traffic, { x: row });
});

test("events that this page does not know change nothing", () => {
  for (const type of ["plan_changed", "constructor", "__proto__", "toString", ""]) {
    assert.equal(after(connected, [type, { id: "a" }]), connected, type);
  }
});

test("out of order: rows before the first snapshot, without an id, or already removed", () => {
  assert.equal(after(initial, ["device", device("a")]), initial);
  assert.equal(after(initial, ["deployment", deployment("x")]), initial);
  assert.equal(after(initial, ["request", record("x", 1)], ["traffic", { deployment: "x" }]).requests.length, 0);
  for (const type of ["device_removed", "deployment", "deployment_removed", "traffic"]) {
    assert.equal(after(connected, [type, {}]), connected, type);
    assert.equal(after(connected, [type]), connected, `${type} without data`);
  }
  assert.equal(after(connected, ["device", {}]).devices, connected.devices);
  assert.equal(after(connected, ["device_removed", { id: "zz" }]), connected);
  assert.equal(after(connected, ["deployment_removed", { id: "zz" }]), connected);
});

test("the state before an event is never changed", () => {
  const text = JSON.stringify(connected);
  after(connected, ["device", device("a", { state: "lost" })], ["deployment_removed", { id: "x" }], ["snapshot", snapshot()]);
  assert.equal(JSON.stringify(connected), text);
});

test("a missing key signs out until the key is accepted", () => {
  const out = after(connected, ["who", { who: { caller: "ada" } }], ["key_required"], ["disconnected"]);
  assert.equal(out.connection, "signed_out", "and not merely disconnected");
  assert.equal(out.who, null);
  assert.equal(after(out, ["signed_in"]).connection, "connecting");
});

test("an answer that is awaited, refused, given", () => {
  assert.equal(ask(connected, "launch"), IDLE);
  const sent = after(connected, ["ask", { key: "launch", busy: true }]);
  assert.deepEqual(ask(sent, "launch"), { busy: true, error: "" });
  const refused = after(sent, ["ask", { key: "launch", error: "no such file" }]);
  assert.deepEqual(ask(refused, "launch"), { busy: false, error: "no such file" });
  assert.deepEqual(ask(after(refused, ["ask", { key: "launch" }]), "launch"), IDLE);
});

test("a refusal is shown until its deployment moves on", () => {
  const refused = after(connected, ["ask", { key: "deployment x", error: "not now" }]);
  assert.equal(ask(after(refused, ["deployment", deployment("x")]), "deployment x").error, "not now");
  assert.deepEqual(after(refused, ["deployment", deployment("x", { state: "stopping" })]).asks, {});
});

test("a route is taken, and what was announced before is not said again", () => {
  const there = after(connected, ["announce", { text: "Done." }], ["route", { view: "records", parts: ["12"] }]);
  assert.deepEqual(there.route, { view: "records", parts: ["12"] });
  assert.equal(there.announcement, "");
});

test("answers fill who and models", () => {
  const filled = after(connected, ["who", { who: { caller: "ada", scopes: [], is_keyless: false } }], ["models", { models: [{ path: "/m" }] }]);
  assert.equal(filled.who.caller, "ada");
  assert.equal(filled.models.length, 1);
});

test("copied is announced once", () => {
  const copied = after(connected, ["copied", { key: "join-command" }]);
  assert.equal(copied.announcement, "Copied.");
  assert.equal(after(copied, ["copied", { key: "" }]).copied, "");
});

test("each view reduces its own part, and sees the state after the event", () => {
  assert.deepEqual(initial.views, { counter: { devices: 0 }, still: {} });
  assert.deepEqual(after(connected, ["counter/add", { by: 2 }]).views.counter, { devices: 2 });
  assert.deepEqual(after(connected, ["device", device("c")]).views.counter, { devices: 3 });
  assert.equal(after(connected, ["counter/add", { by: 2 }]).views.still, connected.views.still);
  assert.equal(after(connected, ["still/other"]), connected, "nothing changed, so nothing is drawn for it");
});
