// @ts-check
import assert from "node:assert/strict";
import { test } from "node:test";

import { address, parseRoute, VIEWS } from "../../dashboard/routes.mjs";

const START = { view: "devices", parts: [] };

test("each view has an address", () => {
  for (const view of VIEWS) assert.deepEqual(parseRoute(address(view)), { view, parts: [] });
});

test("an address that is none shows the first view", () => {
  for (const hash of ["", "#", "#/", "#/elsewhere", "#/elsewhere/x", "#/%", "#/__proto__", "#/Devices"]) assert.deepEqual(parseRoute(hash), START, hash);
});

test("parts come back as they went, whatever is in them", () => {
  for (const parts of [["12", "14"], ["a b"], ["qwen/2.5 50 %"], ["ä#?&"], ["__proto__"]]) {
    assert.deepEqual(parseRoute(address("records", ...parts)), { view: "records", parts });
  }
  assert.equal(address("records", 12), "#/records/12");
  assert.equal(address("deployments", "a/b"), "#/deployments/a%2Fb");
});

test("empty and broken parts are left out", () => {
  assert.deepEqual(parseRoute("#/records//12/%/"), { view: "records", parts: ["12"] });
  assert.deepEqual(parseRoute("#chat"), { view: "chat", parts: [] });
});
