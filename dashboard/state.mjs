// @ts-check
// What the page knows, as a pure function of the events so far.

import { deploymentName } from "./format.mjs";

/** @typedef {import("./types.mjs").State} State */
/** @typedef {import("./types.mjs").Event} Event */
/** @typedef {import("./types.mjs").Log} Log */
/** @typedef {(state: State, data: any, at_ms: number) => State} Handler */

const LOG_LIMIT_CHARS = 200_000;
const IDLE = { busy: false, error: "" };
const BUSY = { busy: true, error: "" };

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

/** @type {Record<string, Handler>} */
const HANDLERS = {
  // From the event stream. A row before the first snapshot has no place yet; the snapshot brings it.
  snapshot(state, data, at_ms) {
    const { devices = [], deployments = [], ...host } = data;
    const server_ms = Date.parse(host.time ?? "");
    const rows = byId(deployments);
    return {
      ...state,
      connection: "connected",
      updated_ms: at_ms,
      skew_ms: Number.isNaN(server_ms) ? 0 : server_ms - at_ms,
      host,
      devices: byId(devices),
      heard_ms: Object.fromEntries(devices.map((/** @type {any} */ d) => [d.id, heardAt(d, at_ms)])),
      deployments: rows,
      sign_in: IDLE,
      actions: keep(state.actions, rows),
      commands: keep(state.commands, rows),
      logs: keep(state.logs, rows),
      announcement: state.connection === "disconnected" ? "Connected again." : state.announcement,
    };
  },
  device(state, device, at_ms) {
    if (!state.host || !isRow(device)) return state;
    const before = state.devices[device.id];
    return {
      ...state,
      updated_ms: at_ms,
      devices: { ...state.devices, [device.id]: device },
      heard_ms: { ...state.heard_ms, [device.id]: heardAt(device, at_ms) },
      announcement: before?.state === device.state ? state.announcement : deviceNews(device, !before),
    };
  },
  device_removed(state, { id }, at_ms) {
    const device = state.devices[id];
    if (!device) return state;
    return {
      ...state,
      updated_ms: at_ms,
      devices: without(state.devices, id),
      heard_ms: without(state.heard_ms, id),
      announcement: `${device.name} was removed.`,
    };
  },
  deployment(state, deployment, at_ms) {
    if (!state.host || !isRow(deployment)) return state;
    const before = state.deployments[deployment.id];
    const hasMoved = before?.state !== deployment.state;
    return {
      ...state,
      updated_ms: at_ms,
      deployments: { ...state.deployments, [deployment.id]: deployment },
      actions: hasMoved ? without(state.actions, deployment.id) : state.actions,
      announcement: hasMoved ? deploymentNews(deployment) : state.announcement,
    };
  },
  deployment_removed(state, { id }, at_ms) {
    const deployment = state.deployments[id];
    if (!deployment) return state;
    return {
      ...state,
      updated_ms: at_ms,
      deployments: without(state.deployments, id),
      actions: without(state.actions, id),
      commands: without(state.commands, id),
      logs: without(state.logs, id),
      announcement: `${deploymentName(deployment)} was removed.`,
    };
  },

  // From the connection.
  disconnected(state) {
    if (state.connection === "signed_out" || state.connection === "disconnected") return state;
    const announcement = state.connection === "connected" ? "Disconnected." : state.announcement;
    return { ...state, connection: "disconnected", announcement };
  },
  key_required: (state) => ({ ...state, connection: "signed_out" }),
  sign_in_sent: (state) => ({ ...state, sign_in: BUSY }),
  sign_in_refused: (state, { detail }) => ({ ...state, sign_in: failed(detail) }),
  signed_in: (state) => ({ ...state, sign_in: IDLE, connection: "connecting" }),

  // From the page. Answers never write rows: those come from the stream only.
  models: (state, { models }) => ({ ...state, models }),
  launch_sent: (state) => ({ ...state, launch: BUSY }),
  launch_accepted: (state) => ({ ...state, launch: IDLE }),
  launch_refused: (state, { detail }) => ({ ...state, launch: failed(detail) }),
  action_sent: (state, { id }) => withAction(state, id, BUSY),
  action_done: (state, { id }) => withAction(state, id, IDLE),
  action_failed: (state, { id, detail }) => withAction(state, id, failed(detail)),
  join_requested: (state) => ({ ...state, join: null, join_error: "" }),
  join_code: (state, join) => ({ ...state, join, join_error: "" }),
  join_failed: (state, { detail }) => ({ ...state, join: null, join_error: detail }),
  copied: (state, { key }) => ({ ...state, copied: key, announcement: key ? "Copied." : state.announcement }),
  commands_opened(state, { id, launch_id }) {
    const open = { launch_id, record: null, commands: [], error: "" };
    return { ...state, commands: { ...state.commands, [id]: open } };
  },
  commands_closed: (state, { id }) => ({ ...state, commands: without(state.commands, id) }),
  commands(state, { id, launch_id, record = null, commands = [], error = "" }) {
    // An answer about a launch that is no longer shown comes too late.
    if (state.commands[id]?.launch_id !== launch_id) return state;
    return { ...state, commands: { ...state.commands, [id]: { launch_id, record, commands, error } } };
  },
  logs_opened(state, { id, process }) {
    const follow = state.logs[id]?.follow ?? true;
    return { ...state, logs: { ...state.logs, [id]: { ...emptyLog(process), follow } } };
  },
  logs_closed: (state, { id }) => ({ ...state, logs: without(state.logs, id) }),
  logs_follow: (state, { id, follow }) => withLog(state, id, (log) => ({ ...log, follow })),
  log_chunk: (state, { id, from, chunk }) => withLog(state, id, (log) => append(log, from, chunk)),
  log_failed: (state, { id, process, detail }) =>
    withLog(state, id, (log) => (log.process === process ? { ...log, error: detail } : log)),
};

/**
 * A chunk counts only if it answers what was asked last: same process, same place in the file.
 * @param {Log} log @param {number} from @param {import("./types.mjs").LogChunk} chunk @returns {Log}
 */
function append(log, from, chunk) {
  if (chunk.process !== log.process || from !== log.offset) return log;
  // Another file is another launch: its beginning was not asked for yet.
  if (log.file && chunk.file !== log.file) return { ...emptyLog(log.process), follow: log.follow };
  const text = (log.text + chunk.text).slice(-LOG_LIMIT_CHARS);
  return { ...log, file: chunk.file, offset: chunk.offset, text, error: "" };
}

/** @param {string} process @returns {Log} */
function emptyLog(process) {
  return { process, file: "", offset: -1, text: "", follow: true, error: "" };
}

/** @param {State} state @param {string} id @param {(log: Log) => Log} change */
function withLog(state, id, change) {
  const log = state.logs[id];
  return log ? { ...state, logs: { ...state.logs, [id]: change(log) } } : state;
}

/** @param {State} state @param {string} id @param {import("./types.mjs").Request} request */
function withAction(state, id, request) {
  if (!state.deployments[id]) return state; // it was removed while the answer was under way
  return { ...state, actions: { ...state.actions, [id]: request } };
}

/** @param {string} detail */
const failed = (detail) => ({ busy: false, error: detail });

/** @param {any} row */
const isRow = (row) => typeof row.id === "string" && row.id !== "";

/** @param {{silent_s?: number}} device @param {number} at_ms */
const heardAt = ({ silent_s = 0 }, at_ms) => at_ms - silent_s * 1000;

/** @template {{id: string}} T @param {T[]} rows @returns {Record<string, T>} */
const byId = (rows) => Object.fromEntries(rows.filter(isRow).map((row) => [row.id, row]));

/** @template T @param {Record<string, T>} all @param {string} id @returns {Record<string, T>} */
const without = (all, id) => Object.fromEntries(Object.entries(all).filter(([key]) => key !== id));

/** @template T @param {Record<string, T>} all @param {object} rows @returns {Record<string, T>} */
const keep = (all, rows) =>
  Object.fromEntries(Object.entries(all).filter(([key]) => Object.hasOwn(rows, key)));

/** @param {import("./types.mjs").Device} device @param {boolean} isNew */
function deviceNews({ name, state, reason }, isNew) {
  const news = isNew ? `${name} joined, ${state}` : `${name} is ${state}`;
  return sentence(state === "ready" || !reason ? news : `${news}: ${reason}`);
}

/** @param {import("./types.mjs").Deployment} deployment */
function deploymentNews(deployment) {
  const news = `${deploymentName(deployment)} is ${deployment.state}`;
  return sentence(deployment.reason ? `${news}: ${deployment.reason}` : news);
}

/** @param {string} text */
const sentence = (text) => (/[.!?]$/.test(text) ? text : `${text}.`);
