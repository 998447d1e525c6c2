// @ts-check
// What can be set: context, slots, cache, goal, devices, and more.
/** @import { Device, State } from "../types.mjs" */
/** @import { Form } from "./spec.mjs" */
/** @import { Own } from "./state.mjs" */

import { h, memo } from "../dom.mjs";
import { bytes } from "../format.mjs";
import { address } from "../routes.mjs";
import { contextSteps, nearestStep } from "./spec.mjs";
import { isWanted } from "./state.mjs";

const KV_TYPES = [["", "Automatic"], ["f16", "f16"], ["q8_0", "q8_0: half"], ["q4_0", "q4_0: a quarter"]];
const GOALS = [
  ["balanced", "Balanced: loading counts, too"], ["latency", "Latency: quick answers for one"],
  ["throughput", "Throughput: many users at once"], ["fewest devices", "Fewest devices"],
];

/** @param {State} state @param {Own} own */
export function formView(state, { form, form_no, editing, plan }) {
  return h("form", {
    key: `form ${form_no}`, class: "launch-form", "data-submit": "", "data-input": "launch/change", "aria-label": "Settings",
  },
    h("div", { class: "card launch-fields" },
      contextView(form, plan.answer?.plan.model.ctx_train_tokens),
      field("Slots", "slots", form.slots, { type: "number", min: 1, max: 256, inputmode: "numeric" }),
      choiceOf("KV cache", "kv_type", KV_TYPES, form.kv_type),
      h("div", { class: "launch-goal" }, choiceOf("Goal", "goal", GOALS, form.goal))),
    devicesView(state, form),
    h("details", { class: "card" }, h("summary", null, "More"), h("div", { class: "launch-fields" },
      !editing && field("Name", "name", form.name, { placeholder: "From the model" }),
      field("Other names", "aliases", form.aliases, { placeholder: "gpt-4o, default" }),
      field("Devices in order", "order", form.order, { placeholder: "Automatic" }),
      field("Layers on each", "split", form.split, { placeholder: "12, 12, 9", inputmode: "numeric" }),
      field("ubatch", "ubatch", form.ubatch, { type: "number", min: 32, max: 8192, placeholder: "Automatic" }),
      field("Stop when idle (min)", "ttl", form.ttl, { type: "number", min: 0, step: "any", placeholder: "Never" }),
      h("label", { class: "choice" },
        h("input", { type: "checkbox", name: "on_demand", checked: form.on_demand }), "A request starts it when it is stopped"))));
}

/** @param {string} label @param {string} name @param {string} value @param {Record<string, any>} more */
const field = (label, name, value, more) => h("div", { class: "field" },
  h("label", { for: `launch-${name}` }, label),
  h("input", { id: `launch-${name}`, name, value, autocomplete: "off", ...more }));

/** @param {string} label @param {string} name @param {string[][]} all @param {string} chosen perhaps another one, of a command line */
const choiceOf = (label, name, all, chosen) => h("div", { class: "field" },
  h("label", { for: `launch-${name}` }, label),
  h("select", { id: `launch-${name}`, name }, (all.some(([value]) => value === chosen) ? all : [...all, [chosen, chosen]]).map(
    ([value, words]) => h("option", { key: value, value, selected: value === chosen }, words))));

/** A slider and a field for the same figure. @param {Form} form @param {number | null | undefined} trained tokens */
function contextView({ ctx, slots }, trained) {
  const steps = contextSteps(trained);
  const tokens = Number(ctx);
  const most = trained && `${trained.toLocaleString("en")}`;
  const notes = [
    most && (tokens > trained ? `More than the ${most} tokens that it was trained with.` : `Trained with ${most}.`),
    +slots > 1 && `Each slot has ${Math.floor(tokens / +slots).toLocaleString("en")}.`,
  ];
  return h("div", { class: "field launch-context" },
    h("div", { class: "row" }, h("label", { for: "launch-ctx" }, "Context, in tokens"),
      h("input", { id: "launch-ctx", name: "ctx", type: "number", min: 256, max: 10_000_000, value: ctx, inputmode: "numeric" })),
    h("input", {
      type: "range", name: "ctx_step", min: 0, max: steps.length - 1, value: nearestStep(steps, tokens),
      "aria-label": "Context", "aria-valuetext": `${tokens.toLocaleString("en")} tokens`,
    }),
    h("p", { class: "hint" }, notes.filter(Boolean).join(" ") || "What the model remembers of a conversation."));
}

/** @param {State} state @param {Form} form */
function devicesView({ devices, host }, form) {
  const all = Object.values(devices).sort((a, b) => a.name.localeCompare(b.name));
  const rule = form.devices.length ? "All that are ticked are used." : "The planner chooses among the ticked.";
  return h("fieldset", { class: "card" },
    h("legend", { class: "hidden-text" }, "Devices"),
    h("div", { class: "row" }, h("h3", null, "Devices"), h("small", null, rule)),
    host && !all.length && h("p", { class: "hint" },
      "No device has joined. ", h("a", { href: address("devices") }, "Add one"), ", or use the main host alone."),
    h("div", { class: "launch-devices" }, all.map((device) => deviceView(device, form, host?.main_host))));
}

/** @param {Device} device @param {Form} form @param {string} [main_host] */
function deviceView(device, form, main_host) {
  const { id, name } = device;
  const words = deviceWords(device, main_host);
  const isUsable = device.state === "ready" && !device.excluded;
  const isOn = isUsable && isWanted(form, device);
  return memo(id, [name, words, isUsable, isOn], () => h("label", { class: "choice" },
    h("input", { // another one when it becomes usable: what was ticked before does not count
      key: String(isUsable), type: "checkbox", checked: isOn, disabled: !isUsable,
      "data-action": "launch/device", "data-name": name, "data-id": id,
    }),
    h("span", null, name), h("small", null, words)));
}

/** @param {Device} device @param {string} [main_host] */
function deviceWords({ name, state, excluded, facts, used_by }, main_host) {
  if (excluded) return "excluded";
  if (state !== "ready") return state;
  const notes = [facts && `${bytes(facts.memory_available_bytes)} free`, used_by && `serves ${used_by}`, name === main_host && "main host"];
  return notes.filter(Boolean).join(", ");
}
