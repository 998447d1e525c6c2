// @ts-check
// What is shown of a device, in words and sizes.
/** @import { Ask, Device, Engine, Facts, State } from "../types.mjs" */
/** @import { Check, Step } from "./state.mjs" */

import { age, bitRate, deploymentName, milliseconds, plural, secondsSince } from "../format.mjs";
import { ask } from "../state.mjs";

const WARM_C = { android: 42, other: 80 }; // a phone's battery; a processor is hot later
const THINNEST_PX = 2;
const THICKEST_PX = 8;

/**
 * All that the card of a device is made of: it is made anew only when one of these is another.
 * @typedef {{device: Device, engine: Engine | undefined, doing: string, user: string, heard: string, measured: string,
 *   isOpen: boolean, isRenaming: boolean, step: Step | undefined, asked: Ask, check: Check | undefined, checkAge: string,
 *   checkAsked: Ask, isCopied: boolean}} Seen
 */

/** @param {Device} device @param {State} state @param {number} now_ms @returns {Seen} */
export function seen(device, state, now_ms) {
  const { id, used_by, speed } = device;
  const own = state.views.devices;
  return {
    device,
    engine: state.host?.engine,
    doing: doing(device, state),
    user: used_by ? userName(used_by, state) : "",
    heard: ["ready", "parked"].includes(device.state) ? "" : `${age((now_ms - state.heard_ms[id]) / 1000)} ago`,
    measured: speed ? `${age(secondsSince(speed.taken_at, now_ms))} ago` : "",
    isOpen: id in own.open,
    isRenaming: own.renaming === id,
    step: own.steps[id],
    asked: ask(state, `device ${id}`),
    check: own.checks[id],
    checkAge: own.checks[id] ? age((now_ms - own.checks[id].since_ms) / 1000) : "",
    checkAsked: ask(state, `check ${id}`),
    isCopied: state.copied === `check-${id}`,
  };
}

/** @param {State} state @returns {Device[]} */
export function sortedDevices({ devices }) {
  return Object.values(devices).sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }));
}

/** Whether an engine from the main host is on its way to it. @param {Device} device */
export const isInstalling = ({ engine_install }) => ["fetching", "proving"].includes(engine_install?.state ?? "");

/** One word for how it stands. @param {Device} device */
export function condition(device) {
  const { state, excluded } = device;
  if (["unusable", "incompatible"].includes(state) && isInstalling(device)) return "installing";
  return state === "ready" && excluded ? "excluded" : state;
}

/** What it said of itself, unless that is long ago. @param {Device} device */
export const current = ({ state, facts }) => (state === "lost" ? null : facts);

/** @param {Facts} facts */
export const coresWords = ({ cores, fast_cores }) =>
  (fast_cores && fast_cores < cores ? `${fast_cores} fast of ${plural(cores, "core")}` : plural(cores, "core"));

/** That it is slower than it was measured, or "". @param {Facts | null} facts */
export const derateWords = (facts) => (facts?.derate != null && facts.derate < 1
  ? `${facts.derate_reason || "slower now"}: counted at ${Number(facts.derate.toFixed(2))} of its speed` : "");

/** @param {string} id @param {State} state */
const userName = (id, { deployments }) => (deployments[id] ? deploymentName(deployments[id]) : id);

/** What it does now; "" when idle. @param {Device} device @param {State} state */
function doing({ doing, used_by }, state) {
  if (doing !== undefined || !used_by) return doing ?? "";
  return `${state.deployments[used_by]?.state === "ready" ? "serving" : "loading"} ${userName(used_by, state)}`;
}

/** Devices that a filter leaves. @param {Device[]} all @param {string} text @param {string} only a condition, or "" */
export function filtered(all, text, only) {
  const wanted = text.trim().toLowerCase();
  return all.filter((device) => (!only || condition(device) === only)
    && `${device.name} ${device.doing ?? ""} ${device.used_by ?? ""} ${device.facts?.platform ?? ""} ${device.reason}`.toLowerCase().includes(wanted));
}

/** How many devices there are of each condition, the most common first. @param {Device[]} all @returns {[string, number][]} */
export function conditions(all) {
  /** @type {Record<string, number>} */
  const counts = {};
  for (const device of all) counts[condition(device)] = (counts[condition(device)] ?? 0) + 1;
  return Object.entries(counts).sort((a, b) => b[1] - a[1]);
}

/** Thickness of the line to a device: each factor of ten is a step. @param {number | null | undefined} bytes_per_s */
export function wireWidth(bytes_per_s) {
  if (!bytes_per_s) return THINNEST_PX;
  const width = THINNEST_PX + 2 * Math.log10(bytes_per_s / 1e6);
  return Math.min(THICKEST_PX, Math.max(THINNEST_PX, Math.round(width * 2) / 2));
}

/** The network that carries tensors. @param {Device} device */
export const wireInUse = ({ wires }) => wires?.find((wire) => wire.in_use);

/** Round trip and measured speed of the network to a device. @param {Device} device */
export function wireWords(device) {
  const { address, round_trip_ms, speed } = device;
  const wire = wireInUse(device);
  const trip = wire?.round_trip_ms ?? round_trip_ms ?? speed?.round_trip_ms;
  const up = wire?.up_bytes_per_s ?? speed?.up_bytes_per_s;
  return {
    trip: trip == null ? "" : milliseconds(trip),
    rate: /^127\.|^::1$/.test(address) ? "same host" : up ? bitRate(up) : "not measured",
  };
}

/** @param {Facts} facts */
export const isWarm = ({ platform, temperature_c }) =>
  temperature_c != null && temperature_c >= (platform === "android" ? WARM_C.android : WARM_C.other);

/** Whether a device's engine is another one than the main host's. @param {Engine | null} engine @param {Engine | undefined} main */
export function isOtherEngine(engine, main) {
  if (!engine || !main) return false;
  const isSame = (/** @type {string} */ a, /** @type {string} */ b) => !a || !b || a.startsWith(b) || b.startsWith(a);
  return !isSame(engine.build, main.build) || !isSame(engine.rpc_protocol, main.rpc_protocol);
}

/**
 * What can be done with a device: action, word, what it does, and why not now.
 * @param {Seen} seen @returns {[string, string, string, string][]}
 */
export function choices({ device, doing, user, step, asked }) {
  const { state, excluded } = device;
  const why = step ? "It is being measured." : asked.busy ? "One moment…" : "";
  const notReady = state !== "ready" && `It is ${state}.`;
  const inUse = user && `${user} uses it; stop that first.`;
  return [
    ["measure", "Measure", "Takes up to a few minutes. Plans then count with its real speed.",
      why || notReady || inUse || (doing === "being measured" ? "It is being measured." : "")],
    excluded
      ? ["include", "Include again", "Plans may use it again.", why]
      : ["exclude", "Exclude", "No new plan uses it. What runs on it goes on.", why],
    ["drain", "Drain", "Excluded, and its deployments are launched again without it.", why || (user ? "" : "No deployment uses it.")],
    ["rename", "Rename", "Another name, here and in plans.", why],
    ["remove", "Remove…", "Forgets it. It has to join anew.", why],
  ];
}
