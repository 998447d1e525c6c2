// @ts-check
// The whole page as a function of the state. Nothing here changes the state or asks the server.

import { copyable, deploymentsView } from "./deployment_view.mjs";
import { deviceChoices, devicesView } from "./devices_view.mjs";
import { h, patch } from "./dom.mjs";
import { age, bytes, deploymentName, secondsSince } from "./format.mjs";

/** @typedef {import("./types.mjs").State} State */
/** @typedef {(state: State, now_ms: number) => any} View */

/** Views by the id of the element they fill. @type {Record<string, View>} */
const REGIONS = {
  "host": hostView,
  "connection": connectionView,
  "banner": bannerView,
  "device-list": devicesView,
  "device-choices": deviceChoices,
  "model-list": modelOptions,
  "launch-message": (state) => state.launch.error,
  "sign-in-message": (state) => state.sign_in.error,
  "deployment-list": deploymentsView,
  "join": joinView,
  "live": (state) => state.announcement,
};

/**
 * Make the page show `state`.
 * @param {State} state @param {number} local_ms the browser's clock; views get the main host's
 */
export function render(state, local_ms) {
  const now_ms = local_ms + state.skew_ms;
  for (const [id, view] of Object.entries(REGIONS)) {
    const times_ms = id === "banner" || id === "device-list" ? local_ms : now_ms;
    patch(byId(id), h("div", null, view(state, times_ms)).children);
  }
  const isSignedOut = state.connection === "signed_out";
  byId("sign-in").hidden = !isSignedOut;
  byId("content").hidden = isSignedOut;
  byId("content").classList.toggle("stale", state.connection === "disconnected");
  setBusy("launch-form", state.launch.busy);
  setBusy("sign-in-form", state.sign_in.busy);
  document.title = titleOf(state);
}

/** @param {string} id */
export function byId(id) {
  const element = document.getElementById(id);
  if (!element) throw new Error(`index.html lacks #${id}`);
  return element;
}

/** @param {string} formId @param {boolean} isBusy */
function setBusy(formId, isBusy) {
  const button = /** @type {HTMLButtonElement} */ (byId(formId).querySelector("[type=submit]"));
  button.disabled = isBusy;
}

/** @param {State} state */
function titleOf({ deployments, connection }) {
  if (connection === "disconnected") return "disconnected · Supervisor";
  const all = Object.values(deployments);
  const telling = all.find(({ state }) => state === "failed") ?? all.find(({ state }) => state !== "stopped");
  return telling ? `${deploymentName(telling)} ${telling.state} · Supervisor` : "Supervisor";
}

/** @type {View} */
function hostView({ host }) {
  if (!host) return null;
  const { engine, main_host } = host;
  const words = engine && [engine.build || engine.version, engine.rpc_protocol && `RPC ${engine.rpc_protocol}`];
  return [
    h("span", null, "Main host ", h("strong", null, main_host)),
    h("span", null, "Engine ", h("strong", null, words?.filter(Boolean).join(", ") || "none")),
  ];
}

/** @type {View} */
function connectionView({ connection }) {
  const tones = { connected: "good", connecting: "busy", disconnected: "bad", signed_out: "off" };
  return h("span", { class: `state ${tones[connection]}` }, connection.replace("_", " "));
}

/** @type {View} */
function bannerView({ connection, host, updated_ms }, now_ms) {
  if (connection === "disconnected") {
    const last = host ? `last update ${age((now_ms - updated_ms) / 1000)} ago` : "the main host does not answer";
    return h("p", { class: "banner bad" }, `Disconnected, ${last}. Trying again.`);
  }
  const problem = host?.engine?.problem;
  return problem && h("p", { class: "banner warn" }, `The main host’s engine cannot serve: ${problem}`);
}

/** @type {View} */
function modelOptions({ models }) {
  return models.map(({ path, name, size_bytes }) =>
    h("option", { key: path, value: path, label: `${name}, ${bytes(size_bytes)}` }));
}

/** @type {View} */
function joinView(state, now_ms) {
  const { join, join_error } = state;
  if (join_error) return h("p", { class: "error", role: "alert" }, join_error);
  if (!join) return h("p", { class: "hint" }, "Making a join code…");
  const left_s = -(secondsSince(join.expires_at, now_ms) ?? -1);
  return [
    copyable(state, "join-command", join.command, "Run this on the device"),
    h("p", { class: "hint" }, left_s > 0
      ? `The code is valid for ${age(left_s)}. The device appears on this page by itself.`
      : "The code has expired. Close this and open it again for a new one."),
  ];
}
