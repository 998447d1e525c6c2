// @ts-check
// What the view itself keeps: readings for its charts, the log while it is open, and what was asked.
/** @import { LaunchRecord, ShellCommand, State, TokenTime } from "../types.mjs" */
/** @import { Log } from "./logs.mjs" */

import { without } from "../state.mjs";
import { shownId } from "./facts.mjs";
import { append, changed, emptyLog, lost } from "./logs.mjs";

const READINGS = 120;

/**
 * @typedef {{shown: string, history: Record<string, {launch: number | null, readings: TokenTime[]}>, log: Log | null,
 *   isCommandsOpen: boolean, commands: {launch: number, commands: ShellCommand[], record: LaunchRecord} | null,
 *   confirm: string}} Own `confirm`: the deployment that is about to be removed
 */

/** @type {Own} */
export const INITIAL = { shown: "", history: {}, log: null, isCommandsOpen: false, commands: null, confirm: "" };

/** @param {Own} before @param {{type: string, data: any}} event @param {State} state @returns {Own} */
export function reduce(before, { type, data }, state) {
  const id = shownId(state);
  const shown = state.deployments[id] ? id : "";
  // Panels belong to what is looked at.
  const own = before.shown === shown ? before : { ...INITIAL, history: before.history, shown };
  return Object.hasOwn(HANDLERS, type) ? HANDLERS[type](own, data, state) : own;
}

/** @type {Record<string, (own: Own, data: any, state: State) => Own>} */
const HANDLERS = {
  "snapshot": (own, _, { deployments }) => Object.values(deployments).reduce(noted, own),
  "deployment": (own, { id }, { deployments }) => (deployments[id] ? noted(own, deployments[id]) : own),
  "deployment_removed": (own, { id }) => ({ ...own, history: without(own.history, id) }),

  "deployments/confirm": (own, { id }) => ({ ...own, confirm: id }),
  "deployments/commands-open": (own, { open }) => ({ ...own, isCommandsOpen: open }),
  "deployments/commands": (own, answer) => (own.isCommandsOpen ? { ...own, commands: answer } : own),

  "deployments/log-open": (own, { open }) => ({ ...own, log: open ? own.log ?? emptyLog(own.shown) : null }),
  "deployments/log-lines": (own, chunk) => ofLog(own, chunk.id, (log) => append(log, chunk)),
  "deployments/log-silent": (own, { id, process, detail }) =>
    ofLog(own, id, (log) => ({ ...log, isLost: false, silent: { ...log.silent, [process]: detail } })),
  "deployments/log-lost": (own, { id }) => ofLog(own, id, lost),
  "deployments/log-change": (own, { id, ...change }) => ofLog(own, own.shown, (log) => changed(log, change)),
  "deployments/log-hide": (own, { process, isHidden }) =>
    ofLog(own, own.shown, (log) => changed(log, { hidden: { ...log.hidden, [process]: isHidden } })),
  "deployments/log-scroll": (own, { top, follow }) => ofLog(own, own.shown, (log) =>
    (log.top === top && log.follow === follow ? log : { ...log, top, follow })),
};

/**
 * What comes late, for a log that is closed, changes nothing.
 * @param {Own} own @param {string} id @param {(log: Log) => Log} change @returns {Own}
 */
function ofLog(own, id, change) {
  if (own.log?.id !== id) return own;
  const log = change(own.log);
  return log === own.log ? own : { ...own, log };
}

/** @param {Own} own @param {import("../types.mjs").Deployment} deployment @returns {Own} */
function noted(own, { id, launch_id, token_time }) {
  const before = own.history[id];
  if (!token_time || (before?.launch === launch_id && before.readings.at(-1)?.at === token_time.at)) return own;
  const readings = before?.launch === launch_id ? before.readings : [];
  const kept = { launch: launch_id, readings: [...readings, token_time].slice(-READINGS) };
  return { ...own, history: { ...own.history, [id]: kept } };
}
