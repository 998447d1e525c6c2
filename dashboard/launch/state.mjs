// @ts-check
// What the launch form holds, and which plan belongs to it. Pure.
/** @import { State } from "../types.mjs" */

import { BLANK, changesOf, formOf, isLive, nameOf, specOf } from "./spec.mjs";

/**
 * `serial` counts what was wished for; a plan counts only if it answers the newest wish. `form_no`
 * counts how often the fields were filled by us, which makes them anew; `picker_no` how often the picker
 * was opened or its pane chosen (0: a form that nobody touched yet). `sent`: the wish that Launch was pressed for.
 */
export const initial = {
  editing: "", base: /** @type {any} */ (null), form: BLANK, form_no: 0, serial: 0, sent: -1, world: "",
  picker: "here", picker_no: 0, filter: "", hub: { text: "", repos: null, repo: "", files: null },
  plan: { serial: 0, answer: /** @type {any} */ (null), error: "", code: "", nearest: /** @type {any} */ (null) },
};
/** @typedef {typeof initial} Own */

/** @type {Record<string, (own: Own, data: any, state: State) => Own>} */
const HANDLERS = {
  "launch/change": (own, { form }) => wished(own, form),
  "launch/set": (own, { form }) => ({ ...wished(own, form), form_no: own.form_no + 1 }),
  "launch/pick": (own, { model }) => (model === own.form.model ? { ...own, picker: "" }
    : { ...wished(own, { model }), picker: "", picker_no: own.picker_no + 1, plan: { ...initial.plan, serial: own.plan.serial } }),
  "launch/device": (own, { name, id }) => wished(own, toggled(own.form, name, id)),
  "launch/picker": (own, { picker, text }) =>
    ({ ...own, picker, picker_no: own.picker_no + 1, ...(text && { hub: { ...initial.hub, text } }) }),
  "launch/sent": (own) => ({ ...own, sent: own.serial }),
  "launch/filter": (own, { text }) => ({ ...own, filter: text }),
  "launch/hub": (own, { text }) => ({ ...own, hub: { ...initial.hub, text } }),
  "launch/found": (own, { text, repos }) => (text === own.hub.text ? { ...own, hub: { ...own.hub, repos } } : own),
  "launch/repo": (own, { repo }) => ({ ...own, hub: { ...own.hub, repo, files: null } }),
  "launch/files": (own, { repo, files }) => (repo === own.hub.repo ? { ...own, hub: { ...own.hub, files } } : own),
  "launch/answer": (own, { serial, answer }) => (serial === own.serial ? { ...own, plan: { ...initial.plan, serial, answer } } : own),
  "launch/refused": (own, { serial, error, code, nearest = null }) =>
    (serial === own.serial ? { ...own, plan: { ...own.plan, serial, error, code, nearest } } : own),
  "launch/done": (own) => ({ ...initial, form_no: own.form_no + 1, serial: own.serial, world: own.world }),
  route: opened,
  snapshot: (own, _, state) => again(opened(own, _, state), worldOf(state), true),
  device: (own, _, state) => again(own, worldOf(state)),
  device_removed: (own, _, state) => again(own, worldOf(state)),
};

/** @param {Own} own @param {{type: string, data: any}} event @param {State} state after the event @returns {Own} */
export const reduce = (own, { type, data }, state) => (Object.hasOwn(HANDLERS, type) ? HANDLERS[type](own, data, state) : own);

/** @param {Own} own @param {Partial<Own["form"]>} change @returns {Own} */
function wished(own, change) {
  const form = { ...own.form, ...change };
  return JSON.stringify(form) === JSON.stringify(own.form) ? own : { ...own, form, serial: own.serial + 1 };
}

/** Ask again when devices came, went, or changed what they may do. @param {Own} own @param {string} world @returns {Own} */
const again = (own, world, isForced = false) =>
  (world === own.world && !isForced ? own : { ...own, world, serial: own.serial + (own.form.model ? 1 : 0) });

/** What decides whether plans still hold. @param {State} state */
export const worldOf = ({ devices }) => Object.values(devices).map(({ id, state, excluded, used_by }) => [id, state, excluded, used_by]).join();

/**
 * Begin anew where the address names another deployment than the form is filled with.
 * @param {Own} own @param {any} _ @param {State} state
 */
function opened(own, _, { route, deployments }) {
  const name = route.parts[0] ?? "";
  if (route.view !== "launch" || name === own.editing || (name && !deployments[name])) return own;
  const base = name ? deployments[name].spec : null;
  return { ...initial, editing: name, base, form: base ? formOf(base) : BLANK, picker: base ? "" : "here",
    form_no: own.form_no + 1, serial: own.serial + 1, world: own.world };
}

/**
 * Take a device in or out: of the named ones where devices are named, else of those that are never used.
 * @param {Own["form"]} form @param {string} name @param {string} id
 */
function toggled({ devices, exclude }, name, id) {
  const isOther = (/** @type {string} */ each) => each.split("/")[0] !== name && each.split("/")[0] !== id;
  const rest = (/** @type {string[]} */ all) => (all.every(isOther) ? [...all, name] : all.filter(isOther));
  return devices.length ? { devices: rest(devices), exclude: exclude.filter(isOther) } : { exclude: rest(exclude) };
}

/** Whether the form wants a device. @param {Own["form"]} form @param {{name: string, id: string}} device */
export function isWanted({ devices, exclude }, { name, id }) {
  const isIn = (/** @type {string[]} */ all) => all.some((each) => each === name || each === id);
  return !isIn(exclude) && (!devices.length || isIn(devices.map((each) => each.split("/")[0])));
}

/**
 * Whether there is something to launch, and if not, why.
 * @param {State} state
 */
export function standing({ views, deployments, asks }) {
  const own = /** @type {Own} */ (views.launch);
  const { editing, base, form, plan } = own;
  const { spec, problem } = specOf(form, base);
  const name = editing || nameOf(form);
  const changes = spec && base ? changesOf(base, spec) : [];
  const isAsking = spec !== null && plan.serial !== own.serial;
  const isClash = !editing && form.model !== "" && isLive(deployments[name]);
  let why = problem;
  if (!why && plan.error) why = plan.code === "insufficient_memory" ? "It does not fit." : "There is no plan.";
  if (!why && !plan.answer) why = "Waiting for the plan.";
  if (!why && isClash) why = `${name} is there already.`;
  if (!why && editing && !changes.length) why = "Nothing is changed yet.";
  return { own, spec, name, changes, isAsking, isClash, why, isBusy: asks.launch?.busy ?? false };
}
