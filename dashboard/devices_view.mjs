// @ts-check
// Devices: one card each, and the choices in the launch form.
/** @import { Device, Facts, GgmlDevice, State } from "./types.mjs" */

import { h } from "./dom.mjs";
import { age, bytes, deploymentName, memoryParts, milliseconds, percent, platformName } from "./format.mjs";
import { badge, factList, tone } from "./parts.mjs";

/** @param {State} state @returns {Device[]} */
export function sortedDevices(state) {
  return Object.values(state.devices).sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }));
}

/** @param {State} state */
export const readyDevices = (state) => sortedDevices(state).filter((device) => device.state === "ready");

/** @param {State} state @param {number} now_ms */
export function devicesView(state, now_ms) {
  const cards = sortedDevices(state).map((device) => deviceCard(device, state, now_ms));
  if (cards.length) return cards;
  return h("p", { class: "empty" }, state.host
    ? "No device has joined yet. Press “Add a device” and run the line it shows on a phone, a Mac or a PC."
    : "Waiting for the main host.");
}

/** @param {Device} device @param {State} state @param {number} now_ms */
function deviceCard(device, state, now_ms) {
  const { id, facts, round_trip_ms } = device;
  const isReady = device.state === "ready";
  return h("article", { key: id, class: "card device", "aria-labelledby": `device-${id}` },
    h("header", { class: "row" }, h("h3", { id: `device-${id}` }, device.name), badge(device.state)),
    h("p", { class: isReady ? "" : `reason ${tone(device.state)}` }, doing(device, state)),
    facts && memoryView(facts, device.rpc_server?.resident_bytes),
    facts?.ggml_devices.filter(({ name }) => !/^cpu/i.test(name)).map(ggmlView),
    factList([
      ["Platform", facts && `${platformName(facts.platform)} ${facts.machine}`],
      ["Cores", facts?.cores],
      ["Engine", facts && engineText(facts, state)],
      ["Battery", facts && batteryText(facts)],
      ["Temperature", facts?.temperature_c != null && `${Math.round(facts.temperature_c)} °C`],
      ["Round trip", round_trip_ms != null && milliseconds(round_trip_ms)],
      ["Last heard", facts && !isReady && `${age((now_ms - state.heard_ms[id]) / 1000)} ago`],
    ]));
}

/** What the device does, or why it can do nothing. @param {Device} device @param {State} state */
function doing({ state: condition, reason, rpc_server: worker, used_by }, state) {
  if (condition !== "ready") return reason || `${condition}, no reason given`;
  const deployment = used_by && state.deployments[used_by];
  if (deployment) return `${deployment.state === "ready" ? "serving" : `${deployment.state}:`} ${deploymentName(deployment)}`;
  if (used_by) return "in use";
  if (worker?.state === "failed") return `worker failed: ${worker.detail || "no detail given"}`;
  return worker?.state === "starting" || worker?.state === "ready" ? `worker ${worker.state}, not in use` : "idle";
}

/** @param {Facts} facts @param {State} state */
function engineText({ engine }, state) {
  if (!engine) return "none";
  const build = engine.build || engine.version || "unknown build";
  return build === state.host?.engine?.build ? build : `${build}, not the main host’s build`;
}

/** @param {Facts} facts */
function batteryText({ battery_percent, battery_charging }) {
  if (battery_percent == null) return null;
  const word = battery_charging == null ? "" : battery_charging ? ", charging" : ", not charging";
  return `${Math.round(battery_percent)} %${word}`;
}

/** @param {Facts} facts @param {number | null | undefined} resident_bytes */
function memoryView(facts, resident_bytes) {
  const { total, ours, others, free } = memoryParts(facts, resident_bytes);
  /** @type {[string, string, number][]} */
  const parts = [["ours", "worker", ours], ["others", "others", others], ["free", "free", free]];
  return h("div", null,
    h("p", { class: "row small" }, h("span", null, "Memory"), h("span", null, bytes(total))),
    h("div", { class: "bar", "aria-hidden": "true" }, parts.map(([kind, , size]) =>
      h("span", { class: kind, vars: { "--part": size } }))),
    h("ul", { class: "legend" }, parts.map(([kind, word, size]) =>
      size > 0 && h("li", { key: kind, class: kind }, `${word} ${bytes(size)}`))));
}

/** @param {GgmlDevice} ggml */
function ggmlView({ name, description, total_bytes, free_bytes }) {
  return h("div", { key: name },
    h("p", { class: "row small" },
      h("span", null, name, " ", h("small", null, description)),
      h("span", null, `${bytes(free_bytes)} free`)),
    h("progress", { class: "quiet", max: 100, value: percent(total_bytes - free_bytes, total_bytes), "aria-label": `${name}, memory in use` }));
}

/** Check boxes of the launch form. @param {State} state */
export function deviceChoices(state) {
  const devices = readyDevices(state);
  if (!devices.length) return h("p", { class: "hint" }, "No device is ready.");
  return [
    devices.map((device) => h("label", { key: device.id, class: "choice" },
      h("input", { type: "checkbox", name: "devices", value: device.name }),
      h("span", null, device.name, h("small", null,
        device.facts && ` ${bytes(device.facts.memory_available_bytes)} free`,
        device.used_by && `, ${doing(device, state)}`)))),
    h("p", { class: "hint" }, "None ticked: all that are ready."),
  ];
}
