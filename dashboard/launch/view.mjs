// @ts-check
// Launch: pick a model, see its plan at once, change what you like, press one button.
/** @import { State } from "../types.mjs" */

import { h } from "../dom.mjs";
import { bytes, plural, speed } from "../format.mjs";
import { copyable, errorText, linked } from "../parts.mjs";
import { places, planView } from "../plan_view.mjs";
import { address } from "../routes.mjs";
import { formView } from "./form_view.mjs";
import { chosenView, pickerView } from "./picker_view.mjs";
import { isOnHub } from "./spec.mjs";
import { isWanted, standing } from "./state.mjs";

/** @typedef {ReturnType<typeof standing>} Standing */

const WORTH_IT = 1.03; // of a speed; the planner's own words begin there
const INVITATION =
  "Pick a model. Its plan appears here: which device holds which layers, what that needs of its memory, and how fast it will be.";

/** @param {State} state */
export function launchView(state) {
  const [name] = state.route.parts;
  const stand = standing(state);
  const { own } = stand;
  if (name && own.editing !== name) {
    return [h("h2", { tabindex: -1 }, `Edit ${name}`),
      h("p", { class: "empty" }, state.host ? "There is no deployment of that name." : "Waiting for the main host.")];
  }
  return [
    h("h2", { tabindex: -1 }, own.editing ? `Edit ${own.editing}` : "Launch"),
    h("div", { class: "launch" },
      h("div", { class: "launch-wish" }, own.picker ? pickerView(state, own) : chosenView(state, own), formView(state, own)),
      h("div", { class: "launch-answer" }, barView(stand),
        own.form.model ? answerView(state, stand) : h("p", { key: "none", class: "empty" }, INVITATION))),
  ];
}

/** The button, and beside it what to expect; on a phone always in sight. @param {Standing} stand */
function barView({ own, why, isBusy, isAsking }) {
  const plan = own.plan.answer?.plan;
  const hasFailed = own.plan.error !== "";
  const words = hasFailed ? why : plan ? fitWords(plan) : own.form.model ? "Planning…" : "No model yet";
  return h("div", { class: `launch-bar ${isAsking ? "asking" : ""}` },
    h("span", { class: "launch-asking", "aria-hidden": "true" }),
    h("div", { class: "launch-expect", id: "launch-why" },
      h("p", { class: hasFailed ? "reason bad" : "" }, words),
      h("p", { class: "hint" }, isBusy ? "Asking the main host…" : !hasFailed && why),
      own.form.model && h("button", { type: "button", class: "link launch-look", "data-action": "launch/look" },
        hasFailed ? "See why" : "See the plan")),
    h("button", {
      type: "button", class: "primary", "data-action": "launch/submit", disabled: why !== "" || isBusy, "aria-describedby": "launch-why",
    }, own.editing ? ["Relaunch", h("span", null, " with these changes")] : "Launch"));
}

/** @param {any} plan */
function fitWords(plan) {
  const { prediction } = plan;
  const fits = `fits ${plural(new Set(places(plan).map(({ name }) => name)).size, "device")}`;
  if (!prediction) return `It ${fits}`;
  const together = prediction.users > 1 ? ` for ${prediction.users} users together` : "";
  return [h("strong", null, speed(prediction.decode_tokens_per_s)), `${together}, ${fits}`];
}

/** All that is known of the wish: what hinders it, what it changes, its plan. @param {State} state @param {Standing} stand */
function answerView(state, stand) {
  const { own, isAsking } = stand;
  const { answer, error } = own.plan;
  return h("div", { key: "answer", class: `stack ${isAsking ? "asking" : ""}` },
    own.sent === own.serial && errorText(state, "launch"),
    error && problemView(state, stand),
    nameView(state, stand),
    isOnHub(own.form.model) && h("p", { key: "hub", class: "message busy" },
      `This model is on the hub. It is fetched first${answer ? `, ${bytes(answer.plan.model.size_bytes)}` : ""}, unless it is here already; then it is launched.`),
    changesView(stand),
    !answer && !error && h("p", { class: "empty" }, "Asking for the plan…"),
    answer && h("div", { key: "plan", class: `card ${error ? "launch-old" : ""}` },
      error && h("h3", null, "The last plan that fitted"),
      planView(answer.plan, { devices: state.devices })),
    answer && !error && [whatIfsView(answer), commandsView(state, answer.commands)]);
}

/** Whether the name is taken. @param {State} state @param {Standing} stand */
function nameView({ deployments }, { own, name, isClash }) {
  const same = deployments[name];
  if (!same || own.editing) return null;
  if (!isClash) return h("p", { class: "hint" }, `This takes the place of ${name}, which is ${same.state}.`);
  return h("div", { class: "message warn" }, h("p", null, `${name} is ${same.state}. Stop it first, give this one another name, or `,
    h("a", { href: address("launch", name) }, `edit ${name}`), "."));
}

/** @param {Standing} stand */
function changesView({ changes }) {
  return changes.length > 0 && h("section", { class: "card launch-changes", "aria-label": "Changes" },
    h("h3", null, "What changes"),
    h("ul", { class: "sentences" }, changes.map(({ label, from, to }) =>
      h("li", { key: label }, h("strong", null, label), " ", h("del", null, from), " → ", h("ins", null, to)))));
}

/** Why there is no plan, and what can be done at once. @param {State} state @param {Standing} stand */
function problemView({ devices }, { own: { plan: { error, code, nearest }, form } }) {
  const [first, ...rest] = error.split(/(?<=[.!?]) (?=[A-Z\d])/);
  const fits = nearest && { ctx: String(nearest.ctx_tokens), kv_type: nearest.kv_type, ubatch: String(nearest.ubatch) };
  const tokens = nearest?.ctx_tokens.toLocaleString("en");
  const off = Object.values(devices).filter((device) => device.state === "ready" && !device.excluded && !isWanted(form, device));
  return h("div", { key: "problem", class: "message bad", role: "alert" },
    h("p", null, linked(first)), rest.map((sentence) => h("p", { class: "hint" }, linked(sentence))),
    h("div", { class: "launch-remedies" },
      fits && setButton(fits, `Use ${tokens} tokens, ${nearest.kv_type} KV cache, ubatch ${nearest.ubatch}`),
      off.length > 0 && setButton({ exclude: [], devices: [] }, off.length > 1 ? "Use all devices" : `Use ${off[0].name} too`),
      code === "insufficient_memory" && h("a", { class: "button", href: address("devices") }, "Add a device"),
      h("button", { type: "button", "data-action": "launch/picker", "data-picker": "here" }, "Another model")));
}

/** Fills fields at one click. @param {object} form @param {string} words */
const setButton = (form, words) =>
  h("button", { key: words, type: "button", "data-action": "launch/set", "data-form": JSON.stringify(form) }, words);

/** @param {any} answer */
function whatIfsView({ plan, what_ifs = [] }) {
  const now = plan.prediction?.decode_tokens_per_s ?? 0;
  const better = what_ifs.filter((/** @type {any} */ each) => each.tokens_per_s > WORTH_IT * now);
  if (!now || !better.length) return null;
  return h("section", { key: "what-ifs", class: "card", "aria-labelledby": "launch-what-ifs" },
    h("h3", { id: "launch-what-ifs" }, "What would make it faster"),
    h("ul", { class: "launch-what-ifs" }, better.map((/** @type {any} */ { change, tokens_per_s }) => h("li", { key: change },
      h("strong", null, `+${speed(tokens_per_s - now)}`), h("span", null, change), whatIfAction(change, plan.model.name)))));
}

/** What on this page leads to such a change. @param {string} change @param {string} model */
function whatIfAction(change, model) {
  if (change.startsWith("another ")) return h("a", { class: "button", href: address("devices") }, "Add a device");
  if (!change.includes("quantisation")) return null;
  const text = model.replace(/[-_. ](?:UD[-_])?I?Q\d\w*$/i, "");
  return h("button", { type: "button", "data-action": "launch/picker", "data-picker": "hub", "data-text": text }, "Search for one");
}

/** @param {State} state @param {{host: string, command: string}[]} commands */
const commandsView = (state, commands) => h("details", { key: "commands", class: "card" },
  h("summary", null, "Exact commands"),
  h("div", { class: "stack" },
    h("p", { class: "hint" }, "What a launch of this plan runs. The ports are examples: a launch takes the next that are free."),
    commands.map(({ host, command }, index) => copyable(state, `launch-command-${index}`, `On ${host}`, command))));
