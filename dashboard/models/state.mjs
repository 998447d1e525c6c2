// @ts-check
// What the models view holds: how the list is looked at, what is known of each model, what is sought. Pure.
/** @import { Fit, FoundRepo, Holding, Model, ModelWhere, Pull, Push, Removal, State, Suggestions } from "../types.mjs" */

import { bytes, sentence } from "../format.mjs";
import { worldOf } from "../launch/state.mjs";

/**
 * `no` counts the questions that fits answer: the context, and who is there; `about`: what was asked of the
 * model that is open; `work`: what is done with a model, by its path; `asking`: the dialog that is open;
 * `found.no`: the question that its answer is for.
 * @typedef {{no: number, changed_at: number, fit: Fit | null, problem: string}} KnownFit
 * @typedef {{kind: "verify" | "push" | "look", part: number | null, rows: Push[], tone: "good" | "warn" | "bad", said: string,
 *   notes: string[]}} Work
 * @typedef {{filter: string, sort: string, ctx: number, no: number, world: string, fits: Record<string, KnownFit>,
 *   open: string, about: {where: ModelWhere | null, holdings: Holding[] | null, settings: Record<string, any> | null},
 *   form_no: number, work: Record<string, Work>, asking: string, removal: Removal | null, task: string, hub: {text: string, repos: FoundRepo[] | null},
 *   found: {key: string, no: number, step: string, part: number | null, answer: Suggestions | null}}} Own
 */

const NOTHING = { where: null, holdings: null, settings: null };

/** @type {Own} */
export const initial = {
  filter: "", sort: "name", ctx: 8192, no: 0, world: "", fits: {}, open: "", about: NOTHING, form_no: 0, work: {}, asking: "", removal: null,
  task: "", hub: { text: "", repos: null }, found: { key: "", no: -1, step: "", part: null, answer: null },
};

/** @type {Record<string, (own: Own, data: any, state: State) => Own>} */
const HANDLERS = {
  "models/filter": (own, { text }) => ({ ...own, filter: text }),
  "models/sort": (own, { sort }) => ({ ...own, sort }),
  "models/ctx": (own, { ctx }) => ({ ...own, ctx, no: own.no + 1 }),
  "models/fit": (own, { path, no, changed_at, fit = null, problem = "" }) =>
    (no === own.no ? { ...own, fits: { ...own.fits, [path]: { no, changed_at, fit, problem } } } : own),
  "models/open": (own, { path }) => ({ ...own, open: path, about: NOTHING }),
  "models/about": (own, { path, ...found }) => (path === own.open
    ? { ...own, about: { ...own.about, ...found }, form_no: own.form_no + (found.settings ? 1 : 0) } : own),
  "models/work": (own, { path, work }) => ({ ...own, work: { ...own.work, [path]: work } }),
  "models/ask": (own, { asking }) => ({ ...own, asking, removal: null }),
  "models/removal": (own, { path, removal }) => (path === own.asking ? { ...own, removal } : own),
  "models/task": (own, { task }) => ({ ...own, task }),
  "models/hub": (own, { text }) => ({ ...own, hub: { text, repos: null } }),
  "models/found": (own, { text, repos }) => (text === own.hub.text ? { ...own, hub: { text, repos } } : own),
  "models/suggesting": (own, { key }) => // what is shown stays until the answer for the devices of now is there
    ({ ...own, found: key === own.found.key ? { ...own.found, step: "", part: null } : { ...initial.found, key } }),
  "models/again": (own) => ({ ...own, found: initial.found }),
  "models/suggest-step": (own, { key, step, part }) => (key === own.found.key ? { ...own, found: { ...own.found, step, part } } : own),
  "models/suggested": (own, { key, no, answer }) => (key === own.found.key ? { ...own, found: { ...own.found, no, answer } } : own),
  key_required: () => initial,
  snapshot: moved,
  device: moved,
  device_removed: moved,
};

/** @param {Own} own @param {{type: string, data: any}} event @param {State} state after the event @returns {Own} */
export const reduce = (own, { type, data }, state) => (Object.hasOwn(HANDLERS, type) ? HANDLERS[type](own, data, state) : own);

/** Fits are asked anew when devices came, went, or changed what they may do. @param {Own} own @param {any} _ @param {State} state */
function moved(own, _, state) {
  const world = worldOf(state);
  return world === own.world ? own : { ...own, world, no: own.no + 1 };
}

/** Whether the view is seen. @param {State} state */
export const isHere = ({ route, connection }) => route.view === "models" && connection === "connected";

/** Whether the newest question of a model's fit is answered. @param {Own} own @param {Model} model */
export const isFitKnown = ({ fits, no }, { path, changed_at }) => fits[path]?.no === no && fits[path].changed_at === (changed_at ?? 0);

/**
 * What to ask suggestions for: the repository in the address, else a task while nothing is searched for.
 * @param {State} state @returns {{key: string, no: number, q: string, ctx: number}} key "": nothing
 */
export function suggestWanted(state) {
  const { task, hub, ctx, no } = /** @type {Own} */ (state.views.models);
  const [pane, repo] = state.route.parts;
  if (!isHere(state) || pane !== "get" || (!repo && hub.text)) return { key: "", no, q: "", ctx };
  const q = repo ?? task;
  return { key: `${q} ${ctx}`, no, q, ctx };
}

const { compare: byName } = new Intl.Collator("en", { numeric: true });

/** @type {Record<string, (own: Own) => (a: Model, b: Model) => number>} */
const ORDERS = {
  name: () => (a, b) => byName(a.name, b.name),
  size: () => (a, b) => b.size_bytes - a.size_bytes,
  newest: () => (a, b) => (b.changed_at ?? 0) - (a.changed_at ?? 0),
  speed: ({ fits }) => (a, b) => rate(fits[b.path]) - rate(fits[a.path]),
};

/** @param {KnownFit | undefined} known */
const rate = (known) => (known?.fit?.fits ? known.fit.tokens_per_s ?? 0 : -1);

/**
 * Models with all words of the filter, in order, those apart that cannot be used or belong to others.
 * @param {Model[]} models @param {Own} own
 */
export function listed(models, own) {
  const inputs = [own.filter, own.sort, own.sort === "speed" && own.fits];
  const last = lists.get(models);
  if (last?.inputs.every((each, index) => each === inputs[index])) return last.list;
  const list = sought(models, own);
  lists.set(models, { inputs, list });
  return list;
}

/** The last list of each answer: sorting thousands of models at each heartbeat would be felt. @type {WeakMap<Model[], {inputs: any[], list: List}>} */
const lists = new WeakMap();
/** @typedef {ReturnType<typeof sought>} List */

/** @param {Model[]} models @param {Own} own */
function sought(models, own) {
  const words = own.filter.toLowerCase().split(/\s+/);
  const text = (/** @type {Model} */ model) =>
    [model.path, model.name, model.reference, model.architecture, model.quantisation, model.source, model.problem && "broken"].join(" ").toLowerCase();
  const hits = models.filter((model) => words.every((word) => text(model).includes(word)));
  const sorted = hits.sort(ORDERS.name(own)).sort(ORDERS[own.sort](own));
  return {
    usable: sorted.filter(({ problem, is_companion }) => !problem && !is_companion),
    broken: sorted.filter(({ problem }) => problem),
    companions: sorted.filter(({ problem, is_companion }) => !problem && is_companion),
  };
}

const PULL_ORDER = ["failed", "fetching", "checking", "queued", "paused", "done"];

/** Those that need a look first. @param {Record<string, Pull>} pulls */
export const pullsInOrder = (pulls) => Object.values(pulls).sort((a, b) => PULL_ORDER.indexOf(a.state) - PULL_ORDER.indexOf(b.state));

/** Deployments whose model it is. @param {State} state @param {Model} model */
export const usersOf = ({ deployments }, { path, reference }) => Object.values(deployments)
  .filter(({ spec, plan }) => plan?.model.path === path || spec.model === path || (reference && spec.model === reference));

/** @param {number} count */
export function parameterWords(count) {
  if (count >= 99.5e9) return `${Math.round(count / 1e9)}B`;
  return count >= 0.95e9 ? `${(count / 1e9).toFixed(1)}B` : `${Math.round(count / 1e6)}M`;
}

/** @type {Record<string, string>} */
const SOURCES = { folder: "model folder", hub: "Hugging Face cache", "lm studio": "LM Studio", ollama: "Ollama" };

/** @param {string | undefined} source */
export const sourceWords = (source = "") => SOURCES[source] ?? source;

/** @param {number} count */
export const tokens = (count) => `${count.toLocaleString("en")} tokens`;

/** Such as "Fits with 8,192 tokens, about 11 tokens/s". @param {Fit} fit */
export function fitWords({ fits, ctx_tokens, tokens_per_s, is_estimate, kv_type = "f16" }) {
  if (!fits) return `Does not fit with ${tokens(ctx_tokens)}`;
  const rate = tokens_per_s && `, ${is_estimate ? "≈" : "about"} ${tokens_per_s < 9.95 ? tokens_per_s.toFixed(1) : Math.round(tokens_per_s)} tokens/s`;
  const cache = kv_type && kv_type !== "f16" ? ` and a ${kv_type} cache` : "";
  return `Fits with ${tokens(ctx_tokens)}${cache}${rate || ""}`;
}

/** Why it does not fit, in few words where figures say it. @param {Fit} fit */
export function shortWords({ fits, missing_bytes, smaller_ctx_tokens, ctx_tokens, reason }) {
  if (fits || !missing_bytes) return fits ? "" : sentence(reason);
  const less = smaller_ctx_tokens && smaller_ctx_tokens < ctx_tokens;
  return `It needs ${bytes(missing_bytes)} more${less ? `, or a context of ${tokens(smaller_ctx_tokens)}` : ""}.`;
}
