// @ts-check
// What the launch view asks of the main host.
/** @import { Page, State } from "../types.mjs" */

import { ApiError } from "../api.mjs";
import { speed } from "../format.mjs";
import { searching } from "../hub.mjs";
import { BLANK, contextSteps, formOf, nearestStep, specOf } from "./spec.mjs";
import { standing } from "./state.mjs";

const DEBOUNCE_MS = 250;
const TEXTS = ["ctx", "slots", "kv_type", "goal", "name", "order", "split", "ubatch", "ttl", "aliases"];

let asked = 0; // serial of the wish that was asked for last
let planTimer = 0;
let asking = new AbortController();

/**
 * Ask for the plan of each new wish, a moment after it, and forget the one before.
 * @param {Page} page @param {State} _ @param {State} after
 */
export function effect(page, _, after) {
  const { serial, form, base, editing } = after.views.launch;
  if (serial === asked || after.route.view !== "launch" || after.connection !== "connected") return;
  asked = serial;
  asking.abort();
  clearTimeout(planTimer);
  const { spec } = specOf(form, base);
  if (!spec) return;
  asking = new AbortController();
  const { signal } = asking;
  planTimer = setTimeout(() => askPlan(page, serial, page.api.plan(spec, signal, editing)), DEBOUNCE_MS);
}

/** @param {Page} page @param {number} serial @param {Promise<any>} answer */
async function askPlan(page, serial, answer) {
  try {
    const found = await answer;
    page.dispatch("launch/answer", { serial, answer: found });
    const { prediction } = found.plan;
    page.dispatch("announce", { text: `It fits${prediction ? `, ${speed(prediction.decode_tokens_per_s)} expected` : ""}.` });
  } catch (error) {
    if (error instanceof DOMException) return; // another wish came
    if (!(error instanceof ApiError)) throw error;
    if (error.code === "key_required") page.signedOut();
    page.dispatch("launch/refused", { serial, error: error.message, code: error.code, nearest: error.problem?.shortfall?.nearest });
  }
}

const searchSoon = searching("launch");

/** Begin with what was set for the model, if anything was. @param {Page} page @param {string} model @param {object} [form] else */
export async function useSettings(page, model, form) {
  const answer = await page.ask(`settings ${model}`, page.api.modelSettings(model));
  const values = answer?.value ?? {};
  const { form: now, editing } = page.state().views.launch;
  if (now.model !== model || editing || !(Object.keys(values).length || form)) return;
  const set = formOf(/** @type {any} */ ({ ...specOf({ ...BLANK, ...form, model }).spec, ...values }));
  page.dispatch("launch/set", { form: set });
}

/** @type {Record<string, (page: Page, element: any, data: DOMStringMap, event: any) => unknown>} */
export const actions = {
  "launch/change"(page, form, _, { target }) {
    const steps = contextSteps(page.state().views.launch.plan.answer?.plan.model.ctx_train_tokens);
    const { ctx, ctx_step, on_demand } = form.elements;
    if (target === ctx_step) ctx.value = steps[ctx_step.value];
    if (target === ctx) ctx_step.value = nearestStep(steps, Number(ctx.value));
    const typed = Object.fromEntries(TEXTS.map((name) => [name, form.elements[name]?.value.trim() ?? ""]));
    page.dispatch("launch/change", { form: { ...typed, on_demand: on_demand.checked } });
  },
  "launch/set": (page, _, { form = "{}" }) => page.dispatch("launch/set", { form: JSON.parse(form) }),
  "launch/device": (page, _, { name, id }) => page.dispatch("launch/device", { name, id }),
  "launch/pick"(page, _, { model = "" }) {
    page.dispatch("launch/pick", { model });
    return useSettings(page, model);
  },
  "launch/path"(page, form) {
    const model = form.elements.path.value.trim();
    if (!model) return;
    page.dispatch("launch/pick", { model });
    return useSettings(page, model);
  },
  "launch/picker"(page, _, { picker, text }) {
    page.dispatch("launch/picker", { picker, text });
    if (text) searchSoon(page, text);
  },
  "launch/filter": (page, field) => page.dispatch("launch/filter", { text: field.value.trim() }),
  "launch/hub"(page, field) {
    page.dispatch("launch/hub", { text: field.value.trim() });
    searchSoon(page, field.value.trim());
  },
  async "launch/repo"(page, _, { repo = "" }) {
    page.dispatch("launch/repo", { repo });
    const answer = repo && await page.ask("launch/hub", page.api.repo(repo));
    if (answer) page.dispatch("launch/files", { repo, files: answer.value.files });
  },
  async "launch/models"(page) {
    const answer = await page.ask("models", page.api.models(true));
    if (answer) page.dispatch("models", { models: answer.value });
  },
  "launch/look": () => document.querySelector(".launch-answer > .stack")?.scrollIntoView({ behavior: "smooth" }),
  async "launch/submit"(page) {
    const { own, spec, why, isBusy } = standing(page.state());
    if (!spec || why || isBusy) return;
    page.dispatch("launch/sent");
    const answer = await page.ask("launch", own.editing ? page.api.replace(own.editing, spec) : page.api.launch(spec));
    if (!answer) return;
    page.dispatch("launch/done");
    page.go("deployments", answer.value.id);
  },
};
