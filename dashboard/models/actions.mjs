// @ts-check
// What the models view asks of the main host. Fits are asked for models in sight only, few at once.
/** @import { Page, State } from "../types.mjs" */
/** @import { Own, Work } from "./state.mjs" */

import { ApiError, resultOf } from "../api.mjs";
import { bytes } from "../format.mjs";
import { searching } from "../hub.mjs";
import { useSettings } from "../launch/actions.mjs";
import { address } from "../routes.mjs";
import { isFitKnown, isHere, suggestWanted } from "./state.mjs";

const MOST_ASKED = 2; // fits at once: the main host reads a file's head and plans for each
const SEEN_AROUND = "200px";
const MOST_WORK = 2; // at once: browsers have six connections to a host, in all tabs together

const searchSoon = searching("models");
/** @param {Page} page @returns {Own} */
const ownOf = (page) => page.state().views.models;

// Fits of what is in sight

/** @type {Set<string>} paths */
const inSight = new Set();
/** @type {Set<string>} paths */
let drawn = new Set();
/** @type {Set<string>} paths */
const asking = new Set();
/** @type {IntersectionObserver | undefined} */
let eye;

/** See anew which rows are in sight, once they are drawn. @param {Page} page */
function lookAround(page) {
  requestAnimationFrame(() => {
    eye ??= new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        const path = /** @type {HTMLElement} */ (target).dataset.fit ?? "";
        if (isIntersecting) inSight.add(path);
        else inSight.delete(path);
      }
      askFits(page);
    }, { rootMargin: SEEN_AROUND });
    eye.disconnect();
    inSight.clear();
    const rows = [.../** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll("[data-fit]"))];
    for (const row of rows) eye.observe(row);
    drawn = new Set(rows.map(({ dataset }) => dataset.fit ?? ""));
  });
}

/** @param {Page} page */
function askFits(page) {
  const state = page.state();
  const wanted = ownOf(page).sort === "speed" ? drawn : inSight; // else the fastest may be below
  if (!isHere(state) || !wanted.size) return;
  for (const model of state.models) {
    if (asking.size >= MOST_ASKED) return;
    if (wanted.has(model.path) && !asking.has(model.path) && !isFitKnown(ownOf(page), model)) askFit(page, model);
  }
}

/** @param {Page} page @param {import("../types.mjs").Model} model */
async function askFit(page, { path, changed_at = 0 }) {
  const { no, ctx } = ownOf(page);
  asking.add(path);
  const answer = await page.api.fit(path, ctx).then((fit) => ({ fit }), problemOf(page));
  asking.delete(path);
  page.dispatch("models/fit", { path, no, changed_at, ...answer });
  askFits(page);
}

/** @param {Page} page */
const problemOf = (page) => (/** @type {unknown} */ error) => {
  if (error instanceof ApiError && error.code === "key_required") page.signedOut();
  if (error instanceof ApiError) return { problem: error.message };
  if (error instanceof DOMException) return { problem: "Whether it fits is not known: the main host did not answer in time." };
  throw error;
};

/** @param {(progress: any) => void} tell @param {AbortSignal} signal @param {string} broken what to say when it breaks off by itself */
const following = (tell, signal, broken) => (/** @type {Response} */ response) => resultOf(response, tell, broken).catch((error) => {
  throw signal.aborted ? new DOMException("", "AbortError") : error;
});

// What follows the state

let suggesting = ""; // what is asked for now, and of whom
let suggestion = new AbortController();

/** @param {Page} page @param {State} before @param {State} after */
export function effect(page, before, after) {
  const [old, own] = [before.views.models, after.views.models];
  const isSame = old === own && before.models === after.models && before.route === after.route && before.connection === after.connection;
  if (isSame && before.pulls === after.pulls) return;
  suggest(page, after);
  if (!isHere(after)) return;
  if (hasCome(before, after)) lookAnew(page);
  if (before.models !== after.models || before.route !== after.route || old.filter !== own.filter || old.sort !== own.sort) lookAround(page);
  if (old.no !== own.no || before.connection !== after.connection) askFits(page);
  if (own.open && old.open !== own.open) askAbout(page, own.open);
}

/** Whether a pull has just ended well. @param {State} before @param {State} after */
const hasCome = (before, after) => before.pulls !== after.pulls
  && Object.values(after.pulls).some(({ id, state }) => state === "done" && before.pulls[id] && before.pulls[id].state !== "done");

/** Its folder is looked at now, and not when it is its turn. @param {Page} page */
async function lookAnew(page) {
  const answer = await page.ask("models", page.api.models(true));
  if (answer) page.dispatch("models", { models: answer.value });
}

/** Ask for what suits the address, the task and the context; forget what was asked before. @param {Page} page @param {State} state */
async function suggest(page, state) {
  const { key, no, q, ctx } = suggestWanted(state);
  const { found } = state.views.models;
  const wanted = key && `${key} ${no}`;
  if (wanted === suggesting) return;
  suggesting = wanted;
  suggestion.abort();
  if (!key || (found.key === key && found.no === no && found.answer)) return;
  suggestion = new AbortController();
  page.dispatch("models/suggesting", { key });
  const tell = (/** @type {any} */ { step, done, total }) => page.dispatch("models/suggest-step", { key, step, part: total > 0 ? done / total : null });
  const answer = await page.ask("models/suggest", page.api.suggest(q, ctx, suggestion.signal)
    .then(following(tell, suggestion.signal, "The connection broke while it was looked at; choose it again.")));
  if (answer) page.dispatch("models/suggested", { key, no, answer: answer.value });
  else if (suggesting === wanted) suggesting = ""; // so that it can be asked for again
}

/** @param {Page} page @param {string} path */
async function askAbout(page, path) {
  const { api } = page;
  const tell = (/** @type {string} */ name) => (/** @type {any} */ answer) => answer && page.dispatch("models/about", { path, [name]: answer.value });
  await Promise.all([
    page.ask(`where ${path}`, api.where(path)).then(tell("where")),
    page.ask(`settings ${path}`, api.modelSettings(path)).then(tell("settings")),
  ]);
}

// Work that is followed

/** @type {Record<string, AbortController>} */
const stops = {};

/**
 * @param {Page} page @param {string} path @param {Work["kind"]} kind
 * @param {(signal: AbortSignal) => Promise<Response>} begin @param {(progress: any) => Partial<Work>} shown
 * @param {(result: any) => Partial<Work>} told
 */
async function work(page, path, kind, begin, shown, told) {
  /** @type {Work} */
  let now = { kind, part: null, rows: [], tone: "good", said: "", notes: [] };
  const show = (/** @type {Partial<Work>} */ more) => {
    now = { ...now, ...more };
    page.dispatch("models/work", { path, work: now });
  };
  if (Object.keys(stops).length >= MOST_WORK) {
    return page.dispatch("ask", { key: `model ${path}`, error: "Others are being worked on: wait for one of them, or stop it." });
  }
  show({});
  stops[path] = new AbortController();
  const answer = await page.ask(`model ${path}`, begin(stops[path].signal)
    .then(following((progress) => show(shown(progress)), stops[path].signal, "It was ended before it was done; what was done is kept.")));
  delete stops[path];
  if (answer) show(told(answer.value));
  if (now.said) page.dispatch("announce", { text: now.said });
}

/** What devices hold of it. The first time the model is read for it. @param {Page} page @param {string} path */
const look = (page, path) => work(page, path, "look", (signal) => page.api.holdings(path, signal), reading, (holdings) => {
  page.dispatch("models/about", { path, holdings });
  return {};
});

/** The same, quickly, beside what was said of the work before. @param {Page} page @param {string} path */
async function lookAgain(page, path) {
  const { signal } = new AbortController();
  const answer = await page.ask(`holdings ${path}`, page.api.holdings(path, signal).then(following(() => {}, signal, "")));
  if (answer) page.dispatch("models/about", { path, holdings: answer.value });
}

/** @param {{done_bytes: number, total_bytes: number}} progress */
const reading = ({ done_bytes, total_bytes }) => ({ part: total_bytes > 0 ? done_bytes / total_bytes : null });

/** @type {Record<string, [Work["tone"], string]>} */
const VERDICTS = {
  good: ["good", "Each byte is as it was published."],
  wrong: ["bad", "It is not as it was published: remove it and get it again."],
  unproven: ["warn", "Its structure is right, and nothing tells what its bytes should be."],
};

/** @param {{verdict: string, files: {path: string, verdict: string, detail: string}[]}[]} models one @returns {Partial<Work>} */
function verdictOf([{ verdict, files }]) {
  const [tone, said] = VERDICTS[verdict] ?? ["warn", verdict];
  return { tone, said, notes: files.map(({ path, detail }) => `${path.split("/").pop()}: ${detail}`) };
}

/** @param {Page} page @param {string} id @param {Promise<any>} answer */
const askPull = (page, id, answer) => page.ask(`pull ${id}`, answer);

/** Fill the form of Launch anew. @param {Page} page @param {string} model */
function launch(page, model) {
  page.dispatch("launch/done");
  page.dispatch("launch/pick", { model });
  page.go("launch");
  return useSettings(page, model, { ctx: String(ownOf(page).ctx) });
}

/** @type {Record<string, (page: Page, element: any, data: DOMStringMap, event: any) => unknown>} */
export const actions = {
  "models/filter": (page, field) => page.dispatch("models/filter", { text: field.value.trim() }),
  "models/sort": (page, field) => page.dispatch("models/sort", { sort: field.value }),
  "models/ctx": (page, field) => page.dispatch("models/ctx", { ctx: Number(field.value) }),
  "models/open": (page, _, { path = "" }) => page.dispatch("models/open", { path }),
  "models/launch": (page, _, { model = "" }) => launch(page, model),

  "models/verify": (page, _, { path = "" }) => work(page, path, "verify", (signal) => page.api.verifyModel(path, signal),
    reading, verdictOf),
  "models/look": (page, _, { path = "" }) => look(page, path),
  async "models/push"(page, _, { path = "" }) {
    await work(page, path, "push", (signal) => page.api.pushModel({ model: path, ctx_tokens: ownOf(page).ctx }, signal),
      (rows) => ({ rows }), (rows) => ({ said: `The weights are there: ${rows.map((/** @type {any} */ { device, sent_bytes }) => `${bytes(sent_bytes)} were sent to ${device}`).join(", ")}.` }));
    if (ownOf(page).open === path && ownOf(page).about.holdings) await lookAgain(page, path);
  },
  "models/stop": (_, __, { path = "" }) => stops[path]?.abort(),

  async "models/set"(page, form, { path = "" }) {
    const number = (/** @type {string} */ name) => (form.elements[name].value ? Number(form.elements[name].value) : null);
    const wanted = { ...ownOf(page).about.settings, ctx_tokens: number("ctx_tokens"), slots: number("slots"), kv_type: form.elements.kv_type.value || null };
    const answer = await page.ask(`settings ${path}`, page.api.setModel(path, wanted));
    if (!answer) return;
    page.dispatch("models/about", { path, settings: answer.value.values });
    page.dispatch("announce", { text: "Kept." });
  },
  async "models/unset"(page, _, { path = "" }) {
    if (await page.ask(`settings ${path}`, page.api.forgetModel(path))) page.dispatch("models/about", { path, settings: {} });
  },
  async "models/ask-remove"(page, _, { path = "" }) {
    page.dispatch("models/ask", { asking: path });
    const answer = await page.ask("models/remove", page.api.removeModel(path, true));
    if (answer) page.dispatch("models/removal", { path, removal: answer.value });
  },
  "models/asked": (page) => page.dispatch("models/ask", { asking: "" }),
  async "models/remove"(page, button, { path = "" }) {
    if (!await page.ask("models/remove", page.api.removeModel(path))) return;
    button.closest("dialog")?.close();
    page.dispatch("announce", { text: "It was removed." });
    const answer = await page.ask("models", page.api.models());
    if (answer) page.dispatch("models", { models: answer.value });
  },

  "models/hub"(page, field) {
    const text = field.value.trim();
    if (page.state().route.parts[1]) { // back from one of its results, without a jump away from the field
      history.pushState(null, "", address("models", "get"));
      page.dispatch("route", { view: "models", parts: ["get"] });
    }
    page.dispatch("models/hub", { text });
    searchSoon(page, text);
  },
  "models/again": (page) => page.dispatch("models/again"), // what is wanted is asked for anew
  "models/repo": (page, _, { repo = "" }) => page.go("models", "get", repo),
  "models/task": (page, _, { task = "" }) => page.dispatch("models/task", { task }),
  async "models/get"(page, _, { reference = "" }) {
    const answer = await page.ask(`get ${reference}`, page.api.pull(reference));
    if (answer) page.dispatch("announce", { text: `${reference} is being fetched.` });
  },
  "models/pause": (page, _, { id = "" }) => askPull(page, id, page.api.changePull(id, "pause")),
  "models/resume": (page, _, { id = "" }) => askPull(page, id, page.api.changePull(id, "resume")),
  "models/ask-drop": (page, _, { id }) => page.dispatch("models/ask", { asking: `pull ${id}` }),
  async "models/drop"(page, _, { id = "" }) {
    page.dispatch("models/ask", { asking: "" });
    await askPull(page, id, page.api.removePull(id));
  },
};
