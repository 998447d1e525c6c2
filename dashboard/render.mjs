// @ts-check
// The whole page as a function of the state. Nothing here changes the state or asks the server.
/** @import { State } from "./types.mjs" */

import { deploymentsView } from "./deployment_view.mjs";
import { deviceChoices, devicesView } from "./devices_view.mjs";
import { h, patch } from "./dom.mjs";
import { age, bytes, secondsSince } from "./format.mjs";
import { badge, copyable } from "./parts.mjs";

/** Views by the id of the element they fill. @type {Record<string, (state: State, now_ms: number) => any>} */
const REGIONS = {
  "host": hostView,
  "connection": ({ connection }) => badge(connection, connection.replace("_", " ")),
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

/** Make the page show `state`. @param {State} state @param {number} now_ms by the main host's clock */
export function render(state, now_ms) {
  for (const [id, view] of Object.entries(REGIONS)) patch(byId(id), view(state, now_ms));
  const isSignedOut = state.connection === "signed_out";
  byId("sign-in").hidden = !isSignedOut;
  byId("content").hidden = isSignedOut;
  byId("content").classList.toggle("stale", state.connection === "disconnected");
  byId("launch-button").toggleAttribute("disabled", state.launch.busy);
  byId("sign-in-button").toggleAttribute("disabled", state.sign_in.busy);
}

/** @param {string} id */
export function byId(id) {
  const element = document.getElementById(id);
  if (!element) throw new Error(`index.html lacks #${id}`);
  return element;
}

/** @param {State} state */
function hostView({ host }) {
  if (!host) return null;
  const { engine, main_host } = host;
  const words = [engine?.build || engine?.version, engine?.rpc_protocol && `RPC ${engine.rpc_protocol}`];
  return [
    h("span", null, "Main host ", h("strong", null, main_host)),
    h("span", null, "Engine ", h("strong", null, words.filter(Boolean).join(", ") || "none")),
  ];
}

/** @param {State} state @param {number} now_ms */
function bannerView({ connection, host, updated_ms }, now_ms) {
  if (connection === "disconnected") {
    const last = host ? `last update ${age((now_ms - updated_ms) / 1000)} ago` : "the main host does not answer";
    return h("p", { class: "banner bad" }, `Disconnected, ${last}. Trying again.`);
  }
  const problem = host?.engine?.problem;
  return problem && h("p", { class: "banner warn" }, `The main host’s engine cannot serve: ${problem}`);
}

/** @param {State} state */
function modelOptions({ models }) {
  return models.map(({ path, name, size_bytes }) =>
    h("option", { key: path, value: path, label: `${name}, ${bytes(size_bytes)}` }));
}

/** @param {State} state @param {number} now_ms */
function joinView(state, now_ms) {
  const { join, join_error } = state;
  if (join_error) return h("p", { class: "error", role: "alert" }, join_error);
  if (!join) return h("p", { class: "hint" }, "Making a join code…");
  const left_s = -(secondsSince(join.expires_at, now_ms) ?? -Infinity);
  const hint = left_s > 0
    ? `The code is valid for ${age(left_s)}. The device appears on this page by itself.`
    : "The code has expired. Close this and open it again for a new one.";
  return [copyable(state, "join-command", "Run this on the device", join.command), h("p", { class: "hint" }, hint)];
}
