// @ts-check
import assert from "node:assert/strict";
import { test } from "node:test";

import {
  age, bytes, deploymentName, duration, linkWords, memoryParts, milliseconds, parseSplit, percent, platformName,
  plural, secondsSince, speed,
} from "../../dashboard/format.mjs";

const MIB = 1024 ** 2;
const GIB = 1024 ** 3;

/** @param {(value: any) => string} format @param {[any, string][]} cases */
function table(format, cases) {
  for (const [value, expected] of cases) {
    test(`${format.name}(${value}) is ${expected}`, () => assert.equal(format(value), expected));
  }
}

table(bytes, [
  [0, "0 MiB"], [1, "under 1 MiB"], [MIB / 2, "1 MiB"], [900 * MIB, "900 MiB"],
  [1023.4 * MIB, "1023 MiB"], [1023.5 * MIB, "1.0 GiB"], [GIB, "1.0 GiB"], [15.64 * GIB, "15.6 GiB"],
  [192 * GIB, "192.0 GiB"], [null, "unknown"], [undefined, "unknown"], [NaN, "unknown"],
]);
table(duration, [
  [0, "0 ms"], [-1, "0 ms"], [0.08, "80 ms"], [0.9994, "999 ms"], [0.9996, "1.0 s"], [1.82, "1.8 s"],
  [9.94, "9.9 s"], [9.96, "10 s"], [59.4, "59 s"], [59.6, "1 min 0 s"], [185, "3 min 5 s"],
  [3599.6, "1 h 0 min"], [7500, "2 h 5 min"], [90_000, "25 h 0 min"], [null, "unknown"],
]);
table(age, [
  [-5, "0 s"], [0, "0 s"], [12.9, "12 s"], [59.9, "59 s"], [60, "1 min"], [3599, "59 min"],
  [3600, "1 h"], [86_399, "23 h"], [86_400, "1 day"], [200_000, "2 days"], [null, "unknown"], [NaN, "unknown"],
]);
table(milliseconds, [[0.44, "0.4 ms"], [9.94, "9.9 ms"], [14.3, "14 ms"]]);
table(speed, [[12.43, "12.4 tokens/s"], [130, "130.0 tokens/s"]]);
table(platformName, [["macos", "macOS"], ["android", "Android"], ["linux", "Linux"], ["plan9", "plan9"]]);

test("plural", () => {
  assert.deepEqual([0, 1, 2].map((n) => plural(n, "layer")), ["0 layers", "1 layer", "2 layers"]);
});

test("a link is told by what it does now", () => {
  const idle = { device: "one", state: "serving", phase: "idle", round_trip_ms: 3.21, weight_bytes: 10, saved_bytes: 0,
    remaining_bytes: 0, bytes_per_s: 1e6, eta_s: null, wire_share: 0.041, detail: "" };
  assert.equal(linkWords(idle), "round trip 3.2 ms · 4 % of its time on the wire");
  const loading = { ...idle, saved_bytes: 2 ** 21, remaining_bytes: 2 ** 22, bytes_per_s: 2 ** 20, eta_s: 4, wire_share: null };
  assert.equal(linkWords(loading), "1 MiB/s · 4.0 s left · 2 MiB were there already · round trip 3.2 ms");
});

test("percent stays within 0 and 100 and never shows 100 too early", () => {
  assert.equal(percent(999, 1000), 99);
  assert.equal(percent(2000, 1000), 100);
  assert.equal(percent(-1, 1000), 0);
  assert.equal(percent(1, 0), 0);
});

test("secondsSince counts from an ISO time, backwards too", () => {
  const now_ms = Date.parse("2026-01-01T00:01:00Z");
  assert.equal(secondsSince("2026-01-01T00:00:30+00:00", now_ms), 30);
  assert.equal(secondsSince("2026-01-01T00:01:21Z", now_ms), -21);
  for (const none of ["", null, undefined, "soon"]) assert.equal(secondsSince(none, now_ms), null);
});

test("a deployment is called by its name, else by its model's file", () => {
  const spec = { ctx_tokens: 4096, devices: [], split: [], slots: 1 };
  assert.equal(deploymentName({ spec: { ...spec, model: "/m/a.gguf", name: "demo" } }), "demo");
  assert.equal(deploymentName({ spec: { ...spec, model: "/m/gemma-3-4b.GGUF", name: null } }), "gemma-3-4b");
  assert.equal(deploymentName({ spec: { ...spec, model: "/m/", name: null } }), "/m/");
});

test("the parts of memory sum to the total, whatever the figures claim", () => {
  const facts = (/** @type {number} */ total, /** @type {number} */ free) =>
    /** @type {any} */ ({ memory_total_bytes: total, memory_available_bytes: free });
  assert.deepEqual(memoryParts(facts(100, 60), 30), { total: 100, free: 60, ours: 30, others: 10 });
  assert.deepEqual(memoryParts(facts(100, 60), null), { total: 100, free: 60, ours: 0, others: 40 });
  // Mapped pages count as resident and as available at once.
  assert.deepEqual(memoryParts(facts(100, 60), 70), { total: 100, free: 60, ours: 40, others: 0 });
  assert.deepEqual(memoryParts(facts(100, 160), 10), { total: 100, free: 100, ours: 0, others: 0 });
});

test("a split is read as a person writes it", () => {
  assert.deepEqual(parseSplit("12, 12 9"), [12, 12, 9]);
  assert.deepEqual(parseSplit("  "), []);
  for (const wrong of ["12, x", "1.5", "-3", "1e3"]) assert.equal(parseSplit(wrong), null);
});
