// @ts-check
// Devices: one card each, and the choices in the launch form.

import { h } from "./dom.mjs";
import { age, bytes, deploymentName, memoryParts, percent, platformName, plural, roundTrip } from "./format.mjs";

/** @typedef {import("./types.mjs").State} State */
/** @typedef {import("./types.mjs").Device} Device */

/** @type {Record<string, string>} */
const TONES = { ready: "good", suspect: "warn", lost: "bad", unusable: "bad", incompatible: "bad" };

/** @param {string} tone @param {string} word */
export const stateBadge = (tone, word) => h("span", { class: `state ${tone}` }, word);

/** @param {State} state @returns {Device[]} */
export function sortedDevices(state) {
  return Object.values(state.devices).sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }));
}

/** @param {State} state @param {number} now_ms */
export function devicesView(state, now_ms) {
  const devices = sortedDevices(state);
  if (devices.length) return devices.map((device) => deviceCard(device, state, now_ms));
  const text = state.host
    ? "No device has joined yet. Press “Add a device” and run the line it shows on a phone, a Mac or a PC."
    : "Waiting for the main host.";
  return [h("p", { class: "empty" }, text)];
}

/** @param {Device} device @param {State} state @param {number} now_ms */
function deviceCard(device, state, now_ms) {
  const titleId = `device-${device.id}`;
  return h("article", { key: device.id, class: "card device", "aria-labelledby": titleId },
    h("header", { class: "card-head" },
      h("h3", { id: titleId }, device.name),
      stateBadge(TONES[device.state] ?? "off", device.state)),
    h("p", { class: device.state === "ready" ? "doing" : `doing ${TONES[device.state] ?? "off"}` }, doing(device, state)),
    device.facts && memoryView(device.facts, device.rpc_server?.resident_bytes),
    device.facts?.ggml_devices.filter((each) => !/^cpu/i.test(each.name)).map(ggmlView),
    h("dl", { class: "facts" }, factRows(device, state, now_ms).map(([name, value]) =>
      h("div", { key: name }, h("dt", null, name), h("dd", null, value)))));
}

/** One line: what the device does, or why it can do nothing. @param {Device} device @param {State} state */
export function doing(device, state) {
  if (device.state !== "ready") return device.reason || `${device.state}, no reason given`;
  const { rpc_server: server, used_by } = device;
  const deployment = used_by ? state.deployments[used_by] : undefined;
  if (deployment) return `${deployment.state === "ready" ? "serving" : `${deployment.state}:`} ${deploymentName(deployment)}`;
  if (used_by) return "in use";
  if (server?.state === "failed") return `worker failed: ${server.detail || "no detail given"}`;
  if (server?.state === "starting") return "worker starting";
  return server?.state === "ready" ? "worker running, not in use" : "idle";
}

/** @param {Device} device @param {State} state @param {number} now_ms @returns {[string, string][]} */
function factRows(device, state, now_ms) {
  const { facts } = device;
  /** @type {[string, string | null | undefined | false][]} */
  const rows = [
    ["Platform", facts && [platformName(facts.platform), facts.machine, plural(facts.cores, "core")].filter(Boolean).join(", ")],
    ["Engine", facts && engineText(device, state)],
    ["Battery", facts && batteryText(facts)],
    ["Temperature", facts && facts.temperature_c != null && `${Math.round(facts.temperature_c)} °C`],
    ["Round trip", device.round_trip_ms != null && roundTrip(device.round_trip_ms)],
    ["Address", device.address],
    ["Last heard", device.state !== "ready" && facts !== null && `${age((now_ms - state.heard_ms[device.id]) / 1000)} ago`],
  ];
  return rows.flatMap(([name, value]) => (value ? [/** @type {[string, string]} */ ([name, value])] : []));
}

/** @param {Device} device @param {State} state */
function engineText({ facts }, state) {
  const engine = facts?.engine;
  if (!engine) return "none";
  const build = engine.build || engine.version || "unknown build";
  const main = state.host?.engine?.build;
  const differs = main && engine.build && engine.build !== main;
  return `${build}${engine.rpc_protocol ? `, RPC ${engine.rpc_protocol}` : ""}${differs ? " (not the main host’s build)" : ""}`;
}

/** @param {import("./types.mjs").Facts} facts */
function batteryText({ battery_percent, battery_charging }) {
  if (battery_percent == null) return null;
  const word = battery_charging === null ? "" : battery_charging ? ", charging" : ", not charging";
  return `${Math.round(battery_percent)} %${word}`;
}

/** @param {import("./types.mjs").Facts} facts @param {number | null | undefined} resident_bytes */
function memoryView(facts, resident_bytes) {
  const { total, free, ours, others } = memoryParts(facts, resident_bytes);
  return h("div", { class: "memory" },
    h("p", { class: "memory-title" }, h("span", null, "Memory"), h("span", null, bytes(total))),
    h("div", { class: "bar", "aria-hidden": "true" },
      h("span", { class: "ours", vars: { "--part": ours } }),
      h("span", { class: "others", vars: { "--part": others } }),
      h("span", { class: "free", vars: { "--part": free } })),
    h("ul", { class: "legend" },
      h("li", { class: "ours" }, `worker ${bytes(ours)}`),
      h("li", { class: "others" }, `others ${bytes(others)}`),
      h("li", { class: "free" }, `free ${bytes(free)}`)));
}

/** @param {import("./types.mjs").GgmlDevice} ggml */
function ggmlView(ggml) {
  const used = Math.max(0, ggml.total_bytes - ggml.free_bytes);
  return h("div", { key: ggml.name, class: "memory" },
    h("p", { class: "memory-title" },
      h("span", null, ggml.name, ggml.description && h("small", null, ` ${ggml.description}`)),
      h("span", null, `${bytes(ggml.free_bytes)} of ${bytes(ggml.total_bytes)} free`)),
    h("progress", { class: "quiet", max: 100, value: percent(used, ggml.total_bytes), "aria-label": `${ggml.name}, memory in use` }));
}

/** Check boxes of the launch form. None ticked means all. @param {State} state */
export function deviceChoices(state) {
  const ready = sortedDevices(state).filter((device) => device.state === "ready");
  if (!ready.length) return [h("p", { class: "hint" }, "No device is ready.")];
  return ready.map((device) => h("label", { key: device.id, class: "choice" },
    h("input", { type: "checkbox", name: "devices", value: device.name }),
    h("span", null, device.name, h("small", null, choiceNote(device, state)))));
}

/** @param {Device} device @param {State} state */
function choiceNote(device, state) {
  const free = device.facts ? ` ${bytes(device.facts.memory_available_bytes)} free` : "";
  return device.used_by ? `${free}, ${doing(device, state)}` : free;
}
