// @ts-check
// What the page knows, as a pure function of the events so far.
/** @import { Deployment, Device, Event, Log, LogChunk, Request, State } from "./types.mjs" */

import { deploymentName } from "./format.mjs";

const LOG_LIMIT_CHARS = 200_000;
/** @type {Request} */
const IDLE = { busy: false, error: "" };

/** @type {State} */
export const initial = {
  connection: "connecting",
  updated_ms: 0,
  skew_ms: 0,
  host: null,
  devices: {},
  heard_ms: {},
  deployments: {},
  models: [],
  launch: IDLE,
  sign_in: IDLE,
  join: null,
  join_error: "",
  actions: {},
  commands: {},
  logs: {},
  copied: "",
  announcement: "",
};

/**
 * The state after `event`. Unknown events change nothing: an older page must survive a newer server.
 * @param {State} state @param {Event} event @returns {State}
 */
export function reduce(state, { type, data, at_ms = 0 }) {
  return Object.hasOwn(HANDLERS, type) ? HANDLERS[type](state, data ?? {}, at_ms) : state;
}

/** @type {Record<string, (state: State, data: any, at_ms: number) => State>} */
const HANDLERS = {
  // From the stream. A row before the first snapshot has no place yet; the snapshot brings it.
  snapshot(state, { devices = [], deployments = [], ...host }, at_ms) {
    const server_ms = Date.parse(host.time ?? "") || at_ms;
    return {
      ...withDeployments(state, byId(deployments)),
      connection: "connected",
      updated_ms: server_ms,
      skew_ms: server_ms - at_ms,
      host,
      devices: byId(devices),
      heard_ms: Object.fromEntries(devices.map((/** @type {Device} */ d) => [d.id, heardAt(d, server_ms)])),
      announcement: state.connection === "disconnected" ? "Connected again." : state.announcement,
    };
  },
  device(state, device, at_ms) {
    if (!state.host || !isRow(device)) return state;
    const before = state.devices[device.id];
    const now_ms = at_ms + state.skew_ms;
    return {
      ...state,
      updated_ms: now_ms,
      devices: { ...state.devices, [device.id]: device },
      heard_ms: { ...state.heard_ms, [device.id]: heardAt(device, now_ms) },
      announcement: before?.state === device.state ? state.announcement : news(device.name, device),
    };
  },
  device_removed(state, { id }, at_ms) {
    const device = state.devices[id];
    if (!device) return state;
    return {
      ...state,
      updated_ms: at_ms + state.skew_ms,
      devices: without(state.devices, id),
      heard_ms: without(state.heard_ms, id),
      announcement: `${device.name} was removed.`,
    };
  },
  deployment(state, deployment, at_ms) {
    if (!state.host || !isRow(deployment)) return state;
    const { id } = deployment;
    const hasMoved = state.deployments[id]?.state !== deployment.state;
    return {
      ...state,
      updated_ms: at_ms + state.skew_ms,
      deployments: { ...state.deployments, [id]: deployment },
      actions: hasMoved ? without(state.actions, id) : state.actions,
      announcement: hasMoved ? news(deploymentName(deployment), deployment) : state.announcement,
    };
  },
  deployment_removed(state, { id }, at_ms) {
    const deployment = state.deployments[id];
    if (!deployment) return state;
    return {
      ...withDeployments(state, without(state.deployments, id)),
      updated_ms: at_ms + state.skew_ms,
      announcement: `${deploymentName(deployment)} was removed.`,
    };
  },

  // From the connection.
  disconnected(state) {
    if (state.connection === "signed_out" || state.connection === "disconnected") return state;
    return { ...state, connection: "disconnected", announcement: "Disconnected." };
  },
  key_required: (state) => ({ ...state, connection: "signed_out" }),
  signed_in: (state) => ({ ...state, connection: "connecting", sign_in: IDLE }),

  // From the page. Answers never write rows: those come from the stream only.
  models: (state, { models }) => ({ ...state, models }),
  sign_in: (state, request) => ({ ...state, sign_in: { ...IDLE, ...request } }),
  launch: (state, request) => ({ ...state, launch: { ...IDLE, ...request } }),
  action(state, { id, ...request }) {
    if (!state.deployments[id]) return state; // removed while the answer was under way
    return { ...state, actions: { ...state.actions, [id]: { ...IDLE, ...request } } };
  },
  join: (state, { join = null, error = "" }) => ({ ...state, join, join_error: error }),
  copied: (state, { key }) =>
    ({ ...state, copied: key, announcement: key ? "Copied." : state.announcement }),
  commands_opened(state, { id, launch_id }) {
    const panel = { launch_id, record: null, commands: [], error: "" };
    return { ...state, commands: { ...state.commands, [id]: panel } };
  },
  commands_closed: (state, { id }) => ({ ...state, commands: without(state.commands, id) }),
  commands(state, { id, ...answer }) {
    const panel = state.commands[id];
    // An answer about a launch that is no longer shown comes too late.
    if (panel?.launch_id !== answer.launch_id) return state;
    return { ...state, commands: { ...state.commands, [id]: { ...panel, ...answer } } };
  },
  logs_opened(state, { id, process }) {
    const follow = state.logs[id]?.follow ?? true;
    return { ...state, logs: { ...state.logs, [id]: emptyLog(process, follow) } };
  },
  logs_closed: (state, { id }) => ({ ...state, logs: without(state.logs, id) }),
  logs_follow: (state, { id, follow }) => withLog(state, id, (log) => ({ ...log, follow })),
  log_chunk: (state, { id, from, chunk }) => withLog(state, id, (log) => append(log, from, chunk)),
  log_failed: (state, { id, process, error }) =>
    withLog(state, id, (log) => (log.process === process ? { ...log, error } : log)),
};

/**
 * A chunk counts only if it answers what was asked last: same process, same place in the file.
 * @param {Log} log @param {number} from @param {LogChunk} chunk @returns {Log}
 */
function append(log, from, chunk) {
  if (chunk.process !== log.process || from !== log.offset) return log;
  // Another file is another launch; its end was not asked for yet.
  if (log.file && chunk.file !== log.file) return emptyLog(log.process, log.follow);
  const text = (log.text + chunk.text).slice(-LOG_LIMIT_CHARS);
  return { ...log, file: chunk.file, offset: chunk.offset, text, error: "" };
}

/** @param {string} process @param {boolean} follow @returns {Log} */
const emptyLog = (process, follow) => ({ process, follow, file: "", offset: -1, text: "", error: "" });

/** @param {State} state @param {string} id @param {(log: Log) => Log} change @returns {State} */
function withLog(state, id, change) {
  const log = state.logs[id];
  return log ? { ...state, logs: { ...state.logs, [id]: change(log) } } : state;
}

/** What was open or asked for goes with its deployment. @param {State} state @param {Record<string, Deployment>} rows */
function withDeployments(state, rows) {
  const { actions, commands, logs } = state;
  return { ...state, deployments: rows, actions: keep(actions, rows), commands: keep(commands, rows), logs: keep(logs, rows) };
}

/** @param {any} row */
const isRow = (row) => typeof row.id === "string" && row.id !== "";

/** @param {Device} device @param {number} now_ms */
const heardAt = ({ silent_s }, now_ms) => now_ms - (silent_s ?? 0) * 1000;

/** @param {any[]} rows */
const byId = (rows) => Object.fromEntries(rows.filter(isRow).map((row) => [row.id, row]));

/** @template T @param {Record<string, T>} all @param {string} id @returns {Record<string, T>} */
const without = (all, id) => Object.fromEntries(Object.entries(all).filter(([key]) => key !== id));

/** @template T @param {Record<string, T>} all @param {object} rows @returns {Record<string, T>} */
const keep = (all, rows) =>
  Object.fromEntries(Object.entries(all).filter(([key]) => Object.hasOwn(rows, key)));

/** One sentence for the live region. @param {string} name @param {Device | Deployment} row */
function news(name, { state, reason }) {
  return `${name} is ${state}${reason ? `: ${reason}` : ""}`.replace(/[^.!?]$/, "$&.");
}
