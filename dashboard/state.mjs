// @ts-check
// What the page knows, as a pure function of the events so far: the server's rows, the connection,
// and a part for each view, which that view reduces itself.
/** @import { Ask, Deployment, Device, Event, RequestRecord, State, View } from "./types.mjs" */

import { deploymentName } from "./format.mjs";

const REQUESTS_KEPT = 200;
/** @type {Ask} */
export const IDLE = { busy: false, error: "" };

/** @type {Omit<State, "views">} */
const START = {
  connection: "connecting",
  route: { view: "devices", parts: [] },
  updated_ms: 0,
  skew_ms: 0,
  host: null,
  who: null,
  devices: {},
  heard_ms: {},
  deployments: {},
  traffic: {},
  requests: [],
  models: [],
  pulls: {},
  asks: {},
  copied: "",
  announcement: "",
};

/** @param {View[]} views @returns {State} */
export const initialState = (views) => ({ ...START, views: Object.fromEntries(views.map(({ name, initial }) => [name, initial])) });

/**
 * Make the reducer of the page. Unknown events change nothing: an older page must survive a newer server.
 * @param {View[]} views
 * @returns {(state: State, event: Event) => State}
 */
export function reducer(views) {
  return (before, event) => {
    const { type, data, at_ms = 0 } = event;
    const state = Object.hasOwn(HANDLERS, type) ? HANDLERS[type](before, data ?? {}, at_ms) : before;
    const parts = views.map((view) => [view.name, view.reduce(state.views[view.name], { type, data: data ?? {}, at_ms }, state)]);
    const isSame = parts.every(([name, part]) => state.views[name] === part);
    return isSame ? state : { ...state, views: Object.fromEntries(parts) };
  };
}

/** @type {Record<string, (state: State, data: any, at_ms: number) => State>} */
const HANDLERS = {
  // From the stream. A row before the first snapshot has no place yet; the snapshot brings it.
  snapshot(state, { devices = [], deployments = [], traffic = [], requests = [], pulls = [], ...host }, at_ms) {
    const server_ms = Date.parse(host.time ?? "") || at_ms;
    return {
      ...state,
      connection: "connected",
      updated_ms: server_ms,
      skew_ms: server_ms - at_ms,
      host,
      devices: byId(devices),
      heard_ms: Object.fromEntries(devices.map((/** @type {Device} */ d) => [d.id, heardAt(d, server_ms)])),
      deployments: byId(deployments),
      traffic: Object.fromEntries(traffic.map((/** @type {any} */ row) => [row.deployment, row])),
      requests,
      pulls: byId(pulls),
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
      asks: hasMoved ? without(state.asks, `deployment ${id}`) : state.asks,
      announcement: hasMoved ? news(deploymentName(deployment), deployment) : state.announcement,
    };
  },
  deployment_removed(state, { id }, at_ms) {
    const deployment = state.deployments[id];
    if (!deployment) return state;
    return {
      ...state,
      updated_ms: at_ms + state.skew_ms,
      deployments: without(state.deployments, id),
      traffic: without(state.traffic, id),
      asks: without(state.asks, `deployment ${id}`),
      announcement: `${deploymentName(deployment)} was removed.`,
    };
  },
  request(state, /** @type {RequestRecord} */ record) {
    return state.host ? { ...state, requests: [record, ...state.requests].slice(0, REQUESTS_KEPT) } : state;
  },
  traffic(state, row) {
    return state.host && row.deployment ? { ...state, traffic: { ...state.traffic, [row.deployment]: row } } : state;
  },
  pull(state, pull) {
    if (!state.host || !isRow(pull)) return state;
    const isNews = state.pulls[pull.id]?.state !== pull.state && ["done", "failed"].includes(pull.state);
    const words = pull.state === "done" ? "is on this host" : "could not be fetched";
    return {
      ...state,
      pulls: { ...state.pulls, [pull.id]: pull },
      announcement: isNews ? `${pull.reference} ${words}.` : state.announcement,
    };
  },
  pull_removed: (state, { id }) => ({ ...state, pulls: without(state.pulls, id) }),

  // From the connection.
  heard: (state, _, at_ms) => ({ ...state, updated_ms: at_ms + state.skew_ms }),
  disconnected(state) {
    if (state.connection === "signed_out" || state.connection === "disconnected") return state;
    return { ...state, connection: "disconnected", announcement: "Disconnected." };
  },
  key_required: (state) => ({ ...state, connection: "signed_out", who: null }),
  signed_in: (state) => ({ ...state, connection: "connecting" }),

  // From the page. Answers never write rows: those come from the stream only.
  route: (state, route) => ({ ...state, route, announcement: "" }),
  who: (state, { who }) => ({ ...state, who }),
  models: (state, { models }) => ({ ...state, models }),
  ask: (state, { key, busy = false, error = "" }) => ({ ...state, asks: { ...state.asks, [key]: { busy, error } } }),
  copied: (state, { key }) => ({ ...state, copied: key, announcement: key ? "Copied." : state.announcement }),
  announce: (state, { text }) => ({ ...state, announcement: text }),
};

/** How an answer that the page asked for stands. @param {State} state @param {string} key @returns {Ask} */
export const ask = (state, key) => state.asks[key] ?? IDLE;

/** @param {any} row */
const isRow = (row) => typeof row.id === "string" && row.id !== "";

/** @param {Device} device @param {number} now_ms */
const heardAt = ({ silent_s }, now_ms) => now_ms - (silent_s ?? 0) * 1000;

/** @param {any[]} rows */
const byId = (rows) => Object.fromEntries(rows.filter(isRow).map((row) => [row.id, row]));

/** @template T @param {Record<string, T>} all @param {string} id @returns {Record<string, T>} */
export function without(all, id) {
  if (!Object.hasOwn(all, id)) return all;
  const { [id]: _, ...rest } = all;
  return rest;
}

/** One sentence for the live region. @param {string} name @param {Device | Deployment} row */
function news(name, { state, reason }) {
  return `${name} is ${state}${reason ? `: ${reason}` : ""}`.replace(/[^.!?]$/, "$&.");
}
