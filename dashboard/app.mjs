// @ts-check
// Wiring: events in, state on, page out. Decisions live in state.mjs, looks in render.mjs.

import { api, ApiError, follow } from "./api.mjs";
import { processes } from "./deployment_view.mjs";
import { sortedDevices } from "./devices_view.mjs";
import { deploymentName, parseSplit } from "./format.mjs";
import { byId, render } from "./render.mjs";
import { initial, reduce } from "./state.mjs";

const TICK_MS = 1000;
const RETRY_MS = 3000;
const COPIED_MS = 2000;
const STALE_MS = 30_000;

let state = initial;
let isRenderDue = false;

/** @param {string} type @param {any} [data] */
function dispatch(type, data) {
  state = reduce(state, { type, data, at_ms: Date.now() });
  if (isRenderDue) return;
  isRenderDue = true;
  requestAnimationFrame(draw);
}

function draw() {
  isRenderDue = false;
  render(state, Date.now());
  for (const log of document.querySelectorAll("[data-follow]")) log.scrollTop = log.scrollHeight;
}

/**
 * Ask the server. A missing key shows the sign-in form; any other refusal goes to `onRefused`.
 * @param {Promise<any>} answer @param {(detail: string) => void} [onRefused]
 * @returns {Promise<{value: any} | null>}
 */
async function ask(answer, onRefused = () => {}) {
  try {
    return { value: await answer };
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    if (error.code === "key_required") signOut();
    onRefused(error.message);
    return null;
  }
}

// The event stream

let endStream = () => {};
let retryTimer = 0;

function connect() {
  endStream();
  clearTimeout(retryTimer);
  endStream = follow(
    (type, data) => {
      dispatch(type, data);
      if (type === "snapshot") loadModels();
      if (type === "deployment") refreshPanels(data.id);
    },
    (isClosed) => {
      dispatch("disconnected");
      if (isClosed) retryLater();
    },
  );
}

/** The browser gave up, which says nothing of the cause: ask, so that a missing key is seen. */
async function retryLater() {
  clearTimeout(retryTimer);
  retryTimer = setTimeout(connect, RETRY_MS);
  await loadModels();
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
  dispatch("sign_in_sent");
  const key = String(new FormData(form).get("key")).trim();
  const answer = await ask(api.signIn(key), (detail) => dispatch("sign_in_refused", { detail }));
  if (!answer) return;
  form.reset();
  dispatch("signed_in");
  connect();
}

/** @param {HTMLFormElement} form */
async function launch(form) {
  const refused = (/** @type {string} */ detail) => dispatch("launch_refused", { detail });
  const fields = new FormData(form);
  const split = parseSplit(String(fields.get("split")));
  if (!split) return refused("The split is a list of whole numbers, like 12, 12, 9.");
  let devices = fields.getAll("devices").map(String);
  // A split is by position, so the order that the form shows is sent with it.
  if (split.length && !devices.length) {
    devices = sortedDevices(state).filter((device) => device.state === "ready").map((device) => device.name);
  }
  const name = String(fields.get("name")).trim();
  dispatch("launch_sent");
  const answer = await ask(api.launch({
    model: String(fields.get("model")).trim(),
    ctx_tokens: Number(fields.get("ctx_tokens")),
    ...(name && { name }),
    ...(devices.length && { devices }),
    ...(split.length && { split }),
  }), refused);
  if (!answer) return;
  dispatch("launch_accepted");
  requestAnimationFrame(() => document.getElementById(`deployment-${answer.value.id}`)?.scrollIntoView({ block: "nearest" }));
}

// Deployments

/** @param {"start" | "stop" | "remove"} action @param {string} id */
async function act(action, id) {
  dispatch("action_sent", { id });
  const answer = await ask(api[action](id), (detail) => dispatch("action_failed", { id, detail }));
  if (answer) dispatch("action_done", { id });
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
  const launch_id = state.deployments[id]?.launch_id;
  if (launch_id == null) return;
  dispatch("commands_opened", { id, launch_id });
  const answer = await ask(Promise.all([api.record(launch_id), api.shell(launch_id)]),
    (error) => dispatch("commands", { id, launch_id, error }));
  if (answer) dispatch("commands", { id, launch_id, record: answer.value[0], commands: answer.value[1].commands });
}

/** An open panel follows its deployment to the next launch. @param {string} id */
function refreshPanels(id) {
  const panel = state.commands[id];
  if (panel && panel.launch_id !== state.deployments[id]?.launch_id) openCommands(id);
}

/** @type {Set<string>} */
const readingLogs = new Set();

/** @param {string} id */
async function readLog(id) {
  const log = state.logs[id];
  if (!log || readingLogs.has(id)) return;
  readingLogs.add(id);
  const { process, offset } = log;
  const answer = await ask(api.logs(id, process, offset), (detail) => dispatch("log_failed", { id, process, detail }));
  readingLogs.delete(id);
  if (answer) dispatch("log_chunk", { id, from: offset, chunk: answer.value });
}

/** @param {string} id @param {string} process */
function openLog(id, process) {
  dispatch("logs_opened", { id, process });
  readLog(id);
}

// Copying

/** @param {HTMLElement} button */
async function copy(button) {
  const key = button.dataset.key ?? "";
  const source = byId(key);
  const isCopied = await copyText(source.textContent ?? "", button.closest("dialog") ?? document.body);
  button.focus();
  if (!isCopied) return getSelection()?.selectAllChildren(source); // left to the user's own Ctrl+C
  dispatch("copied", { key });
  setTimeout(() => state.copied === key && dispatch("copied", { key: "" }), COPIED_MS);
}

/**
 * Copy without the clipboard API too: browsers offer it over https and on localhost only.
 * @param {string} text @param {Element} host an open dialog, outside of which nothing can be selected
 */
async function copyText(text, host) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    area.readOnly = true;
    area.className = "hidden-text";
    host.append(area);
    area.select();
    const isCopied = document.execCommand("copy");
    area.remove();
    return isCopied;
  }
}

// Page events, all delegated, so that views hold no functions

/** @type {Record<string, (target: HTMLElement, id: string) => void>} */
const ACTIONS = {
  copy: (target) => copy(target),
  start: (_, id) => act("start", id),
  stop: (_, id) => act("stop", id),
  remove: (_, id) => confirmRemoval(id),
  "add-device": () => openJoin(),
};

async function openJoin() {
  dispatch("join_requested");
  /** @type {HTMLDialogElement} */ (byId("join-dialog")).showModal();
  const answer = await ask(api.joinCode(), (detail) => dispatch("join_failed", { detail }));
  if (answer) dispatch("join_code", answer.value);
}

document.addEventListener("click", ({ target }) => {
  const button = target instanceof Element ? target.closest("button[data-action]") : null;
  if (button instanceof HTMLElement) ACTIONS[button.dataset.action ?? ""]?.(button, button.dataset.id ?? "");
});

document.addEventListener("change", ({ target }) => {
  if (!(target instanceof HTMLElement)) return;
  const { action, id = "" } = target.dataset;
  if (action === "log-process" && target instanceof HTMLSelectElement) openLog(id, target.value);
  if (action === "log-follow" && target instanceof HTMLInputElement) dispatch("logs_follow", { id, follow: target.checked });
});

// `toggle` does not bubble, but it can be captured.
document.addEventListener("toggle", ({ target }) => {
  if (!(target instanceof HTMLDetailsElement)) return;
  const { panel, id = "" } = target.dataset;
  if (panel === "commands") target.open ? openCommands(id) : dispatch("commands_closed", { id });
  if (panel === "logs") target.open ? openLog(id, processes(state.deployments[id])[0]) : dispatch("logs_closed", { id });
}, true);

document.addEventListener("submit", (event) => {
  const form = /** @type {HTMLFormElement} */ (event.target);
  if (form.method === "dialog") return;
  event.preventDefault();
  if (form.id === "sign-in-form") signIn(form);
  if (form.id === "launch-form") launch(form);
});

// A sleeping computer or phone wakes with a stream that only looks alive.
const reconnectIfStale = () => {
  const isStale = Date.now() - state.updated_ms > STALE_MS;
  if (!document.hidden && isStale && state.connection !== "signed_out") connect();
};
document.addEventListener("visibilitychange", reconnectIfStale);
addEventListener("online", reconnectIfStale);

setInterval(() => {
  if (document.hidden) return;
  dispatch("tick"); // ages grow
  Object.keys(state.logs).forEach(readLog);
}, TICK_MS);

dispatch("tick");
connect();
