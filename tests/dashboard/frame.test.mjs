// @ts-check
import assert from "node:assert/strict";
import { test } from "node:test";

import { frameView, titleOf } from "../../dashboard/frame.mjs";
import { tabAfter } from "../../dashboard/parts.mjs";
import { VIEWS } from "../../dashboard/routes.mjs";
import { initialState } from "../../dashboard/state.mjs";
import { all, attribute, text } from "./tree.mjs";

/** @type {any[]} */
const views = VIEWS.map((name) => ({ name, title: name, initial: {}, render: () => ({ tag: "h2", props: {}, children: [name] }) }));
/** @param {string} name @param {string} state @param {any[]} [loads] */
const deployment = (name, state, loads = []) => ({ id: name, spec: { name, model: "/m.gguf" }, state, loads });
/** @param {any[]} deployments @param {object} [more] @returns {any} */
const world = (deployments, more) => ({
  ...initialState(views), connection: "connected", host: { main_host: "desk" }, deployments: Object.fromEntries(deployments.map((each) => [each.id, each])), ...more,
});

test("the title says what matters most, else the view", () => {
  const loading = deployment("recite", "starting", [{ weight_bytes: 60, loaded_bytes: 43 }, { weight_bytes: 40, loaded_bytes: 0 }]);
  const titles = [
    [world([]), "Devices · Supervisor"],
    [world([deployment("a", "ready"), deployment("b", "stopped")], { route: { view: "chat", parts: [] } }), "Chat · Supervisor"],
    [world([deployment("a", "ready"), loading]), "recite loading 43 % · Supervisor"],
    [world([deployment("b", "starting")]), "b starting · Supervisor"],
    [world([loading, deployment("bad", "failed"), deployment("c", "backoff")]), "bad failed · Supervisor"],
    [world([deployment("c", "backoff")]), "c waits to try again · Supervisor"],
    [world([loading], { connection: "disconnected" }), "Disconnected · Supervisor"],
    [world([loading], { connection: "signed_out" }), "Sign in · Supervisor"],
  ];
  for (const [state, title] of titles) assert.equal(titleOf(state), title);
});

test("the navigation names the current view, and what is wrong elsewhere", () => {
  const tree = frameView(world([deployment("a", "failed")], { route: { view: "chat", parts: [] } }), 0, views);
  const links = all(all(tree, "nav"), "a");
  assert.deepEqual(links.map((each) => attribute(each, "href")), VIEWS.map((name) => `#/${name}`));
  assert.deepEqual(links.filter((each) => attribute(each, "aria-current") === "page").map(text), ["chat"]);
  assert.match(text(all(tree, "nav")), /deployments , a failed/);
});

test("who is signed out sees the form and nothing of the host", () => {
  const tree = frameView(world([], { connection: "signed_out" }), 0, views);
  assert.equal(all(tree, "nav").length, 0);
  assert.doesNotMatch(text(tree), /desk/);
  const names = all(tree, "input").map((each) => [attribute(each, "autocomplete"), attribute(each, "type")]);
  assert.deepEqual(names, [["username", undefined], ["current-password", "password"]]);
});

test("a lost connection shows its age", () => {
  const tree = frameView(world([], { connection: "disconnected", updated_ms: 1000 }), 91_000, views);
  assert.match(text(tree), /Disconnected, last update 1 min ago\. Trying again\./);
});

test("arrow keys go round the tabs", () => {
  assert.deepEqual(["ArrowRight", "ArrowLeft", "Home", "End", "Enter", "toString"].map((key) => tabAfter(key, 0, 3)), [1, 2, 0, 2, -1, -1]);
  assert.equal(tabAfter("ArrowRight", 2, 3), 0);
});
