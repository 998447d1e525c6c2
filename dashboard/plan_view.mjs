// @ts-check
// A plan as a picture: who holds which layers, what that needs of their memory, and what it gives.
// All figures are also text. Rules in launch/launch.css.
/** @import { Device, MemoryUse, Plan } from "./types.mjs" */

import { h } from "./dom.mjs";
import { bytes, duration, speed } from "./format.mjs";
import { factList } from "./parts.mjs";

const LEAST_LABELLED = 0.05; // of the strip; a number has no room in less
const COLOURS = 6;
const SHOWN = 4; // sentences
const WORTH_SAYING = 16 * 1024 ** 2; // bytes; less of something passing needs no words

/** What the parts of a bar are. */
const KEY = [
  ["weights", "weights"], ["kv", "KV cache"], ["compute", "compute"], ["loading", "while loading"], ["limit", "limit, then head-room"],
];

/**
 * One place that holds layers; `layers` are repeating ones, from `first` (counted from 1).
 * @typedef {{key: string, agent: string, name: string, ggml: string, first: number, layers: number,
 *   hasOutput: boolean, memory: MemoryUse}} Place
 */

/** In the order that a token takes: the main host first, if it holds layers. @param {Plan} plan @returns {Place[]} */
export function places({ model, host, shards }) {
  let first = 1;
  const held = host.layers > 0 ? [{ ...host, agent_id: "", device: "Main host", ggml_device: "CPU" }, ...shards] : shards;
  return held.map((place, index) => {
    // The last share of a tensor split counts the output layer too.
    const layers = index === held.length - 1 ? Math.max(0, model.block_count + 1 - first) : place.layers;
    first += layers;
    return { key: `${place.agent_id}/${place.ggml_device}`, agent: place.agent_id, name: place.device, ggml: place.ggml_device,
      first: first - layers, layers, hasOutput: place.has_output, memory: place };
  });
}

/** Such as "layers 5–12 and output". @param {Place} place */
export function layerWords({ first, layers, hasOutput }) {
  if (!layers) return hasOutput ? "only the output" : "no layers";
  const range = layers === 1 ? `layer ${first}` : `layers ${first}–${first + layers - 1}`;
  return hasOutput ? `${range} and output` : range;
}

/**
 * How the memory of one place is divided, as shares of the whole bar, which sum to 1. The bar is
 * as long as what is available, or as what is needed where that is more.
 * @param {MemoryUse} use
 */
export function memoryBar({ weight_bytes = 0, kv_bytes = 0, compute_bytes = 0, peak_bytes = 0, budget_bytes = 0, available_bytes }) {
  const lasting = weight_bytes + kv_bytes + compute_bytes;
  const most = Math.max(peak_bytes, lasting);
  const whole = Math.max(available_bytes, most, 1);
  const limit = budget_bytes || available_bytes;
  const share = (/** @type {number} */ count) => count / whole;
  return {
    parts: [["weights", share(weight_bytes)], ["kv", share(kv_bytes)], ["compute", share(compute_bytes)],
      ["loading", share(most - lasting)], ["free", share(whole - most)]],
    budget: share(Math.min(limit, whole)),
    over_bytes: Math.max(0, most - limit),
    loading_bytes: most - lasting,
    free_bytes: Math.max(0, available_bytes - most),
  };
}

/** What is needed, and what that leaves. @param {MemoryUse} use @returns {[string, string]} */
export function memoryWords(use) {
  const { over_bytes, loading_bytes, free_bytes } = memoryBar(use);
  const [[free, unit], [all, ofAll]] = [free_bytes, use.available_bytes].map((count) => bytes(count).split(/ (?=[A-Z])/));
  return [
    [
      `${bytes(use.weight_bytes)} weights`, use.kv_bytes && `${bytes(use.kv_bytes)} KV`,
      use.compute_bytes && `${bytes(use.compute_bytes)} compute`,
      loading_bytes >= WORTH_SAYING && `${bytes(loading_bytes)} while loading`,
    ].filter(Boolean).join(" · "),
    over_bytes > 0 ? `${bytes(over_bytes)} over its limit` : `${free}${unit === ofAll ? "" : ` ${unit}`} of ${all} ${ofAll} free`,
  ];
}

/**
 * @param {Plan} plan
 * @param {{devices?: Record<string, Device>, isCompact?: boolean}} [options] `devices`: says which
 *   of the plan's are not ready now; `isCompact`: without memory, reasons and what was left out
 */
export function planView(plan, { devices, isCompact = false } = {}) {
  const held = places(plan);
  const isHostAside = plan.host.layers === 0 && plan.shards.length > 0;
  return h("section", { key: "plan", class: "plan", "aria-label": "Plan" },
    figures(plan, isCompact),
    strip(held),
    h("ul", { class: `plan-places ${isCompact ? "compact" : ""}` },
      held.map((place, index) => placeView(place, index, stateOf(place, devices), isCompact)),
      isHostAside && !isCompact && ownView(plan)),
    !isCompact && [
      h("p", { class: "hint plan-key" }, KEY.map(([name, words]) => h("span", { key: name, class: name }, words))),
      sentences("why", "Why this plan", plan.reasons),
      sentences("left-out", "Left out", plan.left_out.map(({ name, reason, tokens_per_s }) => [h("strong", null, name), ` ${reason}`,
        tokens_per_s !== null && h("span", { class: "hint" }, ` (${speed(tokens_per_s)} with it)`)])),
    ]);
}

/** @param {Plan} plan @param {boolean} isCompact */
function figures({ prediction, ctx_tokens, slots, kv_type, ubatch }, isCompact) {
  const together = prediction && prediction.users > 1 ? ` for ${prediction.users} users together` : "";
  return h("div", { class: "plan-figures" },
    h("p", { class: "plan-speed" }, prediction
      ? [h("strong", null, prediction.decode_tokens_per_s.toFixed(1)), ` tokens/s expected${together}`] : "No speed was predicted."),
    prediction?.is_guess && h("p", { class: "hint" }, "A guess: some device was never measured."),
    factList([
      ["Loads in", prediction && (prediction.load_s < 0.05 ? "no time" : duration(prediction.load_s))],
      ["Prompts", prediction && speed(prediction.prefill_tokens_per_s)],
      ["Context", `${ctx_tokens.toLocaleString("en")} tokens`],
      ["Slots", slots],
      ["KV cache", kv_type],
      ["ubatch", !isCompact && ubatch],
    ], "wide"));
}

/** All layers as one strip; the text is in the list below. @param {Place[]} held */
const strip = (held, total = held.reduce((sum, { layers }) => sum + layers, 0)) => h("div", { class: "bar layers", "aria-hidden": "true" }, held.map(({ key, layers }, index) =>
  h("span", { key, class: colour(index), vars: { "--part": Math.max(layers, 0.5) } }, layers > total * LEAST_LABELLED && layers)));

/** @param {number} index */
export const colour = (index) => `c${index % COLOURS}`;

/** @param {Place} place @param {Record<string, Device>} [devices] */
function stateOf({ agent }, devices) {
  if (!agent || !devices) return "";
  const state = devices[agent]?.state ?? "not here";
  return state === "ready" ? "" : state;
}

/** @param {Place} place @param {number} index @param {string} state @param {boolean} isCompact */
function placeView(place, index, state, isCompact) {
  return h("li", { key: place.key, class: colour(index) },
    h("p", { class: "plan-place" }, h("strong", null, place.name), h("small", null, place.ggml),
      state && h("span", { class: "reason bad" }, state), h("span", { class: "figure" }, layerWords(place))),
    !isCompact && memoryView(place.memory));
}

/** What llama-server needs on the main host though it holds no layers. @param {Plan} plan */
function ownView({ host }) {
  return h("li", { key: "llama-server", class: "own" },
    h("p", { class: "plan-place" }, h("strong", null, "llama-server itself"), h("small", null, "main host"),
      h("span", { class: "figure" }, host.has_output ? "embeddings and the output" : "embeddings")),
    memoryView(host));
}

/** @param {MemoryUse} use */
function memoryView(use) {
  const { parts, budget, over_bytes } = memoryBar(use);
  return [
    h("div", { class: "plan-memory", "aria-hidden": "true", vars: { "--budget": budget } },
      parts.map(([name, part]) => h("span", { key: name, class: name, vars: { "--part": part } }))),
    h("p", { class: over_bytes > 0 ? "plan-words reason bad" : "plan-words" }, memoryWords(use).map((words) => h("span", null, words))),
  ];
}

/** The first are seen at once. @param {string} key @param {string} title @param {any[]} all */
function sentences(key, title, all) {
  const list = (/** @type {any[]} */ some) => h("ul", { class: "sentences" }, some.map((each) => h("li", null, each)));
  const rest = all.slice(SHOWN);
  return all.length > 0 && h("div", { key, class: "plan-why" }, h("h4", null, title), list(all.slice(0, SHOWN)),
    rest.length > 0 && h("details", null, h("summary", null, `${rest.length} more`), list(rest)));
}
