// @ts-check
// What the view holds of its own: what is open, the filter, measurements under way, what the doctor
// found, and the dialog that waits for a device to join.
/** @import { Checked, Device, JoinCode, State } from "../types.mjs" */

import { without } from "../state.mjs";

/**
 * @typedef {{step: string, part: number, device: string}} Step
 * @typedef {{tab: string, code: JoinCode | null, known: Record<string, string>, arrived: string[]}} Join
 * @typedef {{since_ms: number, results: Checked[] | null}} Check asked at `since_ms`; null: not answered yet
 * @typedef {{open: Record<string, true>, filter: string, only: string, renaming: string, removing: string,
 *   steps: Record<string, Step>, checks: Record<string, Check>, join: Join | null}} Own `checks`: by device, or "all"
 */

/** @type {Own} */
export const initial = { open: {}, filter: "", only: "", renaming: "", removing: "", steps: {}, checks: {}, join: null };

/** @param {Own} own @param {{type: string, data: any}} event @param {State} state after the event @returns {Own} */
export function reduce(own, { type, data }, state) {
  if (["device", "device_removed", "snapshot"].includes(type)) return own.join ? { ...own, join: looked(own.join, state) } : own;
  return Object.hasOwn(HANDLERS, type) ? HANDLERS[type](own, data, state) : own;
}

/** @type {Record<string, (own: Own, data: any, state: State) => Own>} */
const HANDLERS = {
  "devices/open": (own, { id, open }) => ({ ...own, open: open ? { ...own.open, [id]: true } : without(own.open, id) }),
  "devices/set": (own, change) => ({ ...own, ...change }),
  "devices/step": (own, { id, step, part = 0, device = "" }) =>
    ({ ...own, steps: step ? { ...own.steps, [id]: { step, part, device } } : without(own.steps, id) }),
  "devices/check": (own, { key, since_ms }) => ({ ...own, checks: { ...own.checks, [key]: { since_ms, results: null } } }),
  // Answers to what was asked before are dropped; without results it failed, and is no longer under way.
  "devices/checked": (own, { key, since_ms, results }) => (own.checks[key]?.since_ms !== since_ms ? own
    : { ...own, checks: results ? { ...own.checks, [key]: { since_ms, results } } : without(own.checks, key) }),
  "devices/check-closed": (own, { key }) => ({ ...own, checks: without(own.checks, key) }),
  "devices/join": (own, { tab = "termux" }, state) => ({ ...own, join: { tab, code: null, known: marks(state), arrived: [] } }),
  "devices/join-set": (own, change) => (own.join ? { ...own, join: { ...own.join, ...change } } : own),
  "devices/another": (own, _, state) => (own.join ? { ...own, join: { ...own.join, known: marks(state), arrived: [] } } : own),
};

/**
 * Which devices came since the dialog opened: unknown then, or silent, or with another agent process.
 * @param {Join} join @param {State} state @returns {Join}
 */
function looked(join, state) {
  const now = marks(state);
  const known = Object.fromEntries(Object.entries(join.known).filter(([id]) => id in now));
  const stay = join.arrived.filter((id) => id in now);
  const came = Object.keys(now).filter((id) => now[id] && now[id] !== known[id] && !stay.includes(id));
  return { ...join, known, arrived: [...stay, ...came] };
}

/** What tells a device that came from one that was there: "" while it is silent. @param {State} state */
const marks = ({ devices }) => Object.fromEntries(Object.values(devices).map((device) => [device.id, mark(device)]));

/** @param {Device} device */
const mark = ({ state, facts }) => (state === "lost" || !facts ? "" : facts.agent_start || "heard");
