// @ts-check
// Wiring: events in, state on, page out. Decisions live in state.mjs, looks in the views.

import { api, ApiError, follow } from "./api.mjs";
import { readyDevices } from "./devices_view.mjs";
import { deploymentName, parseSplit } from "./format.mjs";
import { byId, render } from "./render.mjs";
import { initial, reduce } from "./state.mjs";

const TICK_MS = 1000;
const RETRY_MS = 3000;
const COPIED_MS = 2000;
const STALE_MS = 30_000;

let state = initial;
let isDrawDue = false;

const now_ms = () => Date.now() + state.skew_ms;

/** @param {string} type @param {any} [data] */
function dispatch(type, data) {
  state = reduce(state, { type, data, at_ms: Date.now() });
  if (!isDrawDue) requestAnimationFrame(draw);
  isDrawDue = true;
}

function draw() {
  isDrawDue = false;
  render(state, now_ms());
  for (const log of document.querySelectorAll("[data-follow]")) log.scrollTop = log.scrollHeight;
}

/**
 * Await an answer. A missing key shows the sign-in form; what else goes wrong, `onRefused` shows.
 * @param {Promise<any>} answer @param {(error: string) => void} [onRefused]
 * @returns {Promise<{value: any} | null>}
 */
async function ask(answer, onRefused) {
  try {
    return { value: await answer };
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    if (error.code === "key_required") signOut();
    onRefused?.(error.message);
    return null;
  }
}

// The event stream

let endStream = () => {};
let retryTimer = 0;

function connect() {
  endStream();
  clearTimeout(retryTimer);
  endStream = follow(onEvent, (isClosed) => {
    dispatch("disconnected");
    if (!isClosed) return;
    // The browser gave up and does not say why: any other request tells whether the key is missing.
    retryTimer = setTimeout(connect, RETRY_MS);
    loadModels();
  });
}

/** @param {string} type @param {any} data */
function onEvent(type, data) {
  dispatch(type, data);
  if (type === "snapshot") loadModels();
  // An open panel follows its deployment to the next launch.
  for (const [id, { launch_id }] of Object.entries(state.commands)) {
    if (state.deployments[id].launch_id !== launch_id) openCommands(id);
  }
}

function signOut() {
  if (state.connection === "signed_out") return;
  endStream();
  clearTimeout(retryTimer);
  dispatch("key_required");
  requestAnimationFrame(() => byId("key").focus());
}

async function loadModels() {
  const answer = await ask(api.models());
  if (answer) dispatch("models", { models: answer.value });
}

// Forms

/** @param {HTMLFormElement} form */
async function signIn(form) {
  dispatch("sign_in", { busy: true });
  const key = String(new FormData(form).get("key")).trim();
  const answer = await ask(api.signIn(key), (error) => dispatch("sign_in", { error }));
  if (!answer) return;
  form.reset();
  dispatch("signed_in");
  connect();
}

/** @param {HTMLFormElement} form */
async function launch(form) {
  const fields = new FormData(form);
  const text = (/** @type {string} */ field) => String(fields.get(field)).trim();
  const split = parseSplit(text("split"));
  if (!split) return dispatch("launch", { error: "Layers per device are whole numbers, like 12, 12, 9." });
  let devices = fields.getAll("devices");
  // A split goes by position, so the order that the form shows is sent with it.
  if (split.length && !devices.length) devices = readyDevices(state).map((device) => device.name);
  const spec = { model: text("model"), name: text("name") || undefined, ctx_tokens: Number(text("ctx_tokens")), devices, split };
  dispatch("launch", { busy: true });
  const answer = await ask(api.launch(spec), (error) => dispatch("launch", { error }));
  if (!answer) return;
  dispatch("launch", {});
  requestAnimationFrame(() => document.getElementById(`deployment-${answer.value.id}`)?.scrollIntoView({ block: "nearest" }));
}

// Deployments

/** @param {"start" | "stop" | "remove"} action @param {string} id */
async function act(action, id) {
  dispatch("action", { id, busy: true });
  const answer = await ask(api[action](id), (error) => dispatch("action", { id, error }));
  if (answer) dispatch("action", { id });
}

/** @param {string} id */
function confirmRemoval(id) {
  const dialog = /** @type {HTMLDialogElement} */ (byId("remove-dialog"));
  byId("remove-name").textContent = deploymentName(state.deployments[id]);
  dialog.returnValue = "";
  dialog.onclose = () => dialog.returnValue === "remove" && act("remove", id);
  dialog.showModal();
}

/** @param {string} id */
async function openCommands(id) {
  const { launch_id } = state.deployments[id];
  dispatch("commands_opened", { id, launch_id });
  if (launch_id === null) return;
  const answer = await ask(Promise.all([api.record(launch_id), api.shell(launch_id)]),
    (error) => dispatch("commands", { id, launch_id, error }));
  if (!answer) return;
  const [record, { commands }] = answer.value;
  dispatch("commands", { id, launch_id, record, commands });
}

/** @param {string} id @param {string} process */
function openLog(id, process) {
  dispatch("logs_opened", { id, process });
  readLog(id);
}

/** Ids of the logs that are being asked for. @type {Set<string>} */
const reading = new Set();

/** @param {string} id */
async function readLog(id) {
  if (reading.has(id)) return;
  reading.add(id);
  const { process, offset } = state.logs[id];
  const answer = await ask(api.logs(id, process, offset), (error) => dispatch("log_failed", { id, process, error }));
  reading.delete(id);
  if (answer) dispatch("log_chunk", { id, from: offset, chunk: answer.value });
}

async function openJoin() {
  dispatch("join");
  /** @type {HTMLDialogElement} */ (byId("join-dialog")).showModal();
  const answer = await ask(api.joinCode(), (error) => dispatch("join", { error }));
  if (answer) dispatch("join", { join: answer.value });
}

// Copying

/** @param {HTMLElement} button @param {string} key id of the element to copy */
async function copy(button, key) {
  const source = byId(key);
  const isCopied = await copyText(source.textContent ?? "", button.closest("dialog") ?? document.body);
  button.focus();
  if (!isCopied) return getSelection()?.selectAllChildren(source); // ready for the user's own Ctrl+C
  dispatch("copied", { key });
  setTimeout(() => state.copied === key && dispatch("copied", { key: "" }), COPIED_MS);
}

/**
 * Browsers offer the clipboard API over https and on localhost only; the old way works everywhere.
 * @param {string} text @param {Element} host an open dialog, outside of which nothing can be selected
 */
async function copyText(text, host) {
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

/** @type {Record<string, (target: any, data: Record<string, any>) => unknown>} */
const ACTIONS = {
  "add-device": openJoin,
  "copy": (button, { key }) => copy(button, key),
  "start": (_, { id }) => act("start", id),
  "stop": (_, { id }) => act("stop", id),
  "remove": (_, { id }) => confirmRemoval(id),
  "log-process": (select, { id }) => openLog(id, select.value),
  "log-follow": (box, { id }) => dispatch("logs_follow", { id, follow: box.checked }),
};

/** @param {globalThis.Event} event */
function onAction({ type, target }) {
  const element = target instanceof Element && target.closest("[data-action]");
  if (!(element instanceof HTMLElement)) return;
  const isButton = element instanceof HTMLButtonElement;
  if (isButton === (type === "click")) ACTIONS[element.dataset.action ?? ""]?.(element, element.dataset);
}
addEventListener("click", onAction);
addEventListener("change", onAction);

// `toggle` does not bubble, but it can be captured.
addEventListener("toggle", ({ target }) => {
  if (!(target instanceof HTMLDetailsElement)) return;
  const { panel, id = "" } = target.dataset;
  if (!panel || !state.deployments[id]) return;
  if (!target.open) dispatch(`${panel}_closed`, { id });
  else if (panel === "logs") openLog(id, "llama-server");
  else openCommands(id);
}, true);

addEventListener("submit", (event) => {
  const form = /** @type {HTMLFormElement} */ (event.target);
  if (form.method === "dialog") return;
  event.preventDefault();
  if (form.id === "launch-form") launch(form);
  else signIn(form);
});

// A computer or phone that slept wakes with a stream that only looks alive.
addEventListener("visibilitychange", () => {
  const isStale = now_ms() - state.updated_ms > STALE_MS;
  if (!document.hidden && isStale && state.connection !== "signed_out") connect();
});

setInterval(() => {
  if (document.hidden) return;
  dispatch("tick"); // ages grow
  Object.keys(state.logs).forEach(readLog);
}, TICK_MS);

dispatch("tick");
connect();
