// @ts-check
// Wiring: events in, state on, page out. Decisions live in state.mjs and the views' own reducers,
// looks in the views, what they ask of the main host in their actions.
//
// A view is a folder whose index.mjs exports a `View` (types.mjs). Its elements name what happens:
//   data-action="launch/submit"   click on a button or link; change of an input, select or textarea
//   data-input, data-submit, data-toggle, data-scroll, data-close   the event of that name
//   data-modal       a dialog that is shown as soon as it is there; take it out to close it
//   data-follow      keeps the end of a scrolled element in sight
//   data-autofocus   takes the focus when it appears
/** @import { Page, State, View } from "./types.mjs" */

import { api, ApiError, followAll } from "./api.mjs";
import { chat } from "./chat/index.mjs";
import { deployments } from "./deployments/index.mjs";
import { devices } from "./devices/index.mjs";
import { patch } from "./dom.mjs";
import { frameActions, frameView, titleOf } from "./frame.mjs";
import { launch } from "./launch/index.mjs";
import { models } from "./models/index.mjs";
import { records } from "./records/index.mjs";
import { address, parseRoute } from "./routes.mjs";
import { settings } from "./settings/index.mjs";
import { initialState, reducer } from "./state.mjs";

const TICK_MS = 1000;
const RETRY_MS = 3000;
const COPIED_MS = 2000;
const QUIET_MS = 20_000; // without an event; a look then shows whether the connection is alive

/** In the order of the navigation. @type {View[]} */
const views = [devices, models, launch, deployments, chat, records, settings];
const reduce = reducer(views);
const root = /** @type {HTMLElement} */ (document.getElementById("page"));

/** @type {State} */
let state = { ...initialState(views), route: parseRoute(location.hash) };
let isDrawDue = false;

const now_ms = () => Date.now() + state.skew_ms;

/** @type {Page} */
const page = {
  api,
  state: () => state,
  now_ms,
  dispatch,
  ask,
  connect,
  go: (view, ...parts) => { location.hash = address(view, ...parts); },
  signedOut,
  copyText,
};

/** @param {string} type @param {any} [data] */
function dispatch(type, data) {
  const before = state;
  state = reduce(state, { type, data, at_ms: Date.now() });
  if (!isDrawDue) requestAnimationFrame(draw);
  isDrawDue = true;
  if (state === before) return;
  for (const view of views) view.effect?.(page, before, state);
}

function draw() {
  isDrawDue = false;
  const shown = new Set(document.querySelectorAll("[data-autofocus]"));
  patch(root, frameView(state, now_ms(), views));
  const title = titleOf(state);
  if (document.title !== title) document.title = title;
  for (const dialog of document.querySelectorAll("dialog[data-modal]:not([open])")) {
    /** @type {HTMLDialogElement} */ (dialog).showModal();
  }
  for (const element of document.querySelectorAll("[data-follow]")) element.scrollTop = element.scrollHeight;
  for (const element of document.querySelectorAll("[data-autofocus]")) {
    if (!shown.has(element)) /** @type {HTMLElement} */ (element).focus();
  }
}

/**
 * Await an answer and show under `key` that it is awaited, or why it was refused. A missing key
 * shows the sign-in form.
 * @param {string} key @param {Promise<any>} answer
 * @returns {Promise<{value: any} | null>} null: refused
 */
async function ask(key, answer) {
  dispatch("ask", { key, busy: true });
  try {
    const value = await answer;
    dispatch("ask", { key });
    return { value };
  } catch (error) {
    const isAborted = error instanceof DOMException && error.name === "AbortError";
    const isSlow = error instanceof DOMException && error.name === "TimeoutError";
    if (!(error instanceof ApiError || isAborted || isSlow)) throw error;
    if (error instanceof ApiError && error.code === "key_required") signedOut();
    dispatch("ask", { key, error: isAborted ? "" : isSlow ? "The main host did not answer in time; try again." : error.message });
    return null;
  }
}

// The event stream

let endStream = () => {};
let retryTimer = 0;
let heard_ms = Date.now();

function connect() {
  endStream();
  clearTimeout(retryTimer);
  heard_ms = Date.now();
  endStream = followAll(onEvent, (isClosed) => {
    dispatch("disconnected");
    if (!isClosed) return;
    // The browser gave up and does not say why: any other request tells whether the key is missing.
    retryTimer = setTimeout(connect, RETRY_MS);
    lookWho();
  });
}

/** @param {string} type @param {any} data */
function onEvent(type, data) {
  heard_ms = Date.now();
  if (type === "models") return void loadModels(); // only that they changed
  dispatch(type, data);
  if (type !== "snapshot") return;
  lookWho();
  loadModels();
}

function signedOut() {
  if (state.connection === "signed_out") return;
  endStream();
  clearTimeout(retryTimer);
  dispatch("key_required");
}

async function lookWho() {
  const answer = await ask("who", api.who());
  if (answer) dispatch("who", { who: answer.value });
  return answer;
}

async function loadModels() {
  const answer = await ask("models", api.models());
  if (answer) dispatch("models", { models: answer.value });
}

/** A cable may be pulled without a word: who is silent for long is asked, and given up if silent still. */
async function lookIfQuiet() {
  if (state.connection !== "connected" || Date.now() - heard_ms < QUIET_MS) return;
  heard_ms = Date.now();
  if (await lookWho()) return dispatch("heard");
  dispatch("disconnected");
  connect();
}

// Copying

/** @param {HTMLElement} button @param {string} id of the element to copy */
async function copy(button, id) {
  const source = document.getElementById(id);
  if (!source) return;
  const isCopied = await copyText(source.textContent ?? "", button.closest("dialog") ?? document.body);
  button.focus();
  if (!isCopied) return getSelection()?.selectAllChildren(source); // ready for the user's own Ctrl+C
  dispatch("copied", { key: id });
  setTimeout(() => state.copied === id && dispatch("copied", { key: "" }), COPIED_MS);
}

/**
 * Browsers offer the clipboard API over https and on localhost only; the old way works everywhere.
 * @param {string} text @param {Element} [host] an open dialog, outside of which nothing can be selected
 */
async function copyText(text, host = document.body) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    area.className = "hidden-text";
    host.append(area);
    area.select();
    const isCopied = document.execCommand("copy");
    area.remove();
    return isCopied;
  }
}

// Page events, all delegated, so that views hold no functions

/** @type {Record<string, (page: Page, element: any, data: DOMStringMap, event: any) => unknown>} */
const ACTIONS = {
  ...frameActions,
  "copy": (_, button, { key = "" }) => copy(button, key),
  ...Object.assign({}, ...views.map((view) => view.actions)),
};
/** Attribute that names the action of each kind of event. @type {Record<string, string>} */
const ATTRIBUTES = {
  click: "action", change: "action", input: "input", submit: "submit", toggle: "toggle", scroll: "scroll", close: "close", keydown: "keydown",
};

/** @param {globalThis.Event} event */
function onEventOfPage(event) {
  const name = ATTRIBUTES[event.type];
  const element = event.target instanceof Element && event.target.closest(`[data-${name}]`);
  if (!(element instanceof HTMLElement || element instanceof SVGElement)) return;
  if (name === "action") {
    const isField = element.matches("input, select, textarea");
    if (isField === (event.type === "click")) return;
  }
  if (event.type === "submit") event.preventDefault();
  ACTIONS[element.dataset[name] ?? ""]?.(page, element, element.dataset, event);
}
// Some of these do not bubble, but all can be captured.
for (const type of Object.keys(ATTRIBUTES)) addEventListener(type, onEventOfPage, { capture: true, passive: type === "scroll" });

addEventListener("hashchange", () => {
  dispatch("route", parseRoute(location.hash));
  requestAnimationFrame(() => {
    scrollTo(0, 0);
    /** @type {HTMLElement | null} */ (document.querySelector("main h2"))?.focus({ preventScroll: true });
  });
});

// A computer or phone that slept wakes with a stream that only looks alive.
addEventListener("visibilitychange", () => {
  if (!document.hidden && Date.now() - heard_ms > QUIET_MS && state.connection !== "signed_out") connect();
});

setInterval(() => {
  if (document.hidden) return;
  dispatch("tick"); // ages grow
  lookIfQuiet();
}, TICK_MS);

dispatch("route", state.route);
connect();
