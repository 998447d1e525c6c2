// @ts-check
// From the form to a spec and back, and what else can be said of a spec. Pure.
/** @import { Deployment, Model, Spec } from "../types.mjs" */

import { duration, parseSplit } from "../format.mjs";

/**
 * What the form holds: texts as typed; `devices`: used, all of them and no others (empty: the planner chooses).
 * @typedef {{model: string, ctx: string, slots: string, kv_type: string, goal: string, name: string, order: string,
 *   split: string, ubatch: string, ttl: string, aliases: string, on_demand: boolean, devices: string[], exclude: string[]}} Form
 */
/** @type {Form} */
export const BLANK = {
  model: "", ctx: "4096", slots: "1", kv_type: "", goal: "balanced", name: "", order: "", split: "", ubatch: "", ttl: "",
  aliases: "", on_demand: false, devices: [], exclude: [],
};

const LEAST_STEP = 512;
const UNKNOWN_CTX = 131_072;
const LIVE = ["pending", "fetching", "starting", "ready", "degraded", "backoff", "stopping"];

/** @param {unknown} value */
const text = (value) => (value === null || value === undefined ? "" : String(value));

/** @param {Spec} spec @returns {Form} */
export const formOf = (spec) => ({
  model: spec.model, ctx: text(spec.ctx_tokens), slots: text(spec.slots), kv_type: text(spec.kv_type), goal: spec.goal ?? "balanced",
  name: text(spec.name), order: (spec.order ?? []).join(", "), split: spec.split.join(", "), ubatch: text(spec.ubatch),
  ttl: spec.ttl_s ? text(spec.ttl_s / 60) : "", aliases: (spec.aliases ?? []).join(", "), on_demand: spec.on_demand ?? false,
  devices: spec.devices, exclude: spec.exclude ?? [],
});

/**
 * What to ask for, or what is wrong with the form. What the form does not show stays as in `base`.
 * @param {Form} form @param {Spec | null} [base] of the deployment that is edited
 * @returns {{spec: Spec | null, problem: string}}
 */
export function specOf(form, base = null) {
  const order = listOf(form.order);
  const split = parseSplit(form.split);
  const ranges = [
    ["The context", form.ctx, 256, 10_000_000], ["The number of slots", form.slots, 1, 256],
    form.ubatch.trim() && ["ubatch", form.ubatch, 32, 8192],
  ].filter(Boolean);
  const wrong = /** @type {any[]} */ (ranges).find(([, value, least, most]) =>
    !(/^\s*\d+\s*$/.test(value) && +value >= least && +value <= most));
  const named = order.length || form.devices.length;
  let problem = "";
  if (!form.model) problem = "Pick a model first.";
  else if (wrong) problem = `${wrong[0]} has to be a whole number from ${wrong[2]} to ${wrong[3]}.`;
  else if (form.name && !/^[A-Za-z0-9][\w.-]{0,62}$/.test(form.name)) problem = "A name has letters, digits, dots and dashes only.";
  else if (!split) problem = "Layers are whole numbers, such as 12, 12, 9.";
  else if (split.length && split.length !== named) problem = "Layers per device need as many devices, named in order.";
  else if (form.ttl.trim() && !(Number(form.ttl) > 0)) problem = "Minutes without a request have to be more than 0.";
  if (problem || !split) return { spec: null, problem };
  return {
    problem,
    spec: {
      ...base, model: form.model, name: form.name || null, ctx_tokens: +form.ctx, slots: +form.slots, kv_type: form.kv_type || null,
      goal: form.goal, devices: order.length ? [] : form.devices, exclude: form.exclude, order, split,
      ubatch: form.ubatch.trim() ? +form.ubatch : null, on_demand: form.on_demand, ttl_s: form.ttl.trim() ? +form.ttl * 60 : null,
      aliases: listOf(form.aliases),
    },
  };
}

/** @param {string} typed */
const listOf = (typed) => typed.split(",").map((part) => part.trim()).filter(Boolean);

/**
 * Models to choose from: those of the model folders, and those that deployments use from elsewhere.
 * @param {Model[]} models @param {Record<string, Deployment>} deployments
 */
export function modelsHere(models, deployments) {
  const used = Object.values(deployments).flatMap(({ plan }) => (plan && !isOnHub(plan.model.path) ? [plan.model] : []));
  const all = [...models.filter(({ problem, is_companion }) => !problem && !is_companion), ...used.map(({ path, name, size_bytes }) => ({ path, name, size_bytes }))];
  return all.filter(({ path }, index) => all.findIndex((each) => each.path === path) === index);
}

/** Steps of the slider: two to each doubling, the largest last. @param {number | null | undefined} trained tokens */
export function contextSteps(trained) {
  const most = Math.max(LEAST_STEP, trained || UNKNOWN_CTX);
  const steps = [];
  for (let step = LEAST_STEP; step < most; step *= 2) steps.push(step, ...(step * 1.5 < most ? [step * 1.5] : []));
  return [...steps, most];
}

/** Index of the step that is nearest, by ratio. @param {number[]} steps @param {number} ctx */
export function nearestStep(steps, ctx) {
  const apart = steps.map((step) => Math.abs(Math.log(step / Math.max(1, ctx || 1))));
  return apart.indexOf(Math.min(...apart));
}

/** @type {Record<string, string>} */
const LABELS = {
  model: "Model", ctx_tokens: "Context", slots: "Slots", kv_type: "KV cache", goal: "Goal", devices: "Devices", exclude: "Never used",
  order: "Order", split: "Layers per device", ubatch: "ubatch", on_demand: "On demand", ttl_s: "Stopped when idle for",
  aliases: "Other names",
};

/** What differs, in words. @param {Spec} before @param {Spec} after @returns {{label: string, from: string, to: string}[]} */
export function changesOf(before, after) {
  return Object.entries(LABELS).flatMap(([key, label]) => {
    const [from, to] = [before, after].map((spec) => valueWords(key, /** @type {any} */ (spec)[key]));
    return from === to ? [] : [{ label, from, to }];
  });
}

/** @param {string} key @param {any} value */
function valueWords(key, value) {
  if (typeof value === "boolean" || key === "on_demand") return value ? "yes" : "no";
  if (key === "ttl_s") return value ? duration(value) : "never";
  if (Array.isArray(value)) return value.join(", ") || "none";
  return text(value) || "automatic";
}

/** What the main host will call it. @param {Form} form */
export function nameOf({ name, model }) {
  const file = model.split("/").pop() ?? "";
  const stem = file.replace(/(?<=.)\.[^.]*$/, "").replace(/[^\p{L}\p{N}_.-]/gu, "-").replace(/^[-_.]+|[-_.]+$/g, "");
  return name || stem.slice(0, 63) || "model";
}

/** @param {Deployment | undefined} deployment */
export const isLive = (deployment) => deployment !== undefined && LIVE.includes(deployment.state);

/** Whether a model is on the hub, and not a file: OWNER/REPO, with :QUANT or a file of it. @param {string} model */
export const isOnHub = (model) => /^\w[\w.-]*\/\w[\w.-]*(:[\w.-]+|\/.+\.gguf)?$/i.test(model) && !/^[^/]+\/[^/]+\.gguf$/i.test(model);
