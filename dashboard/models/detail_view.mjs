// @ts-check
// One model in detail: where it is, what devices hold of it, its own settings, what can be done with it.
/** @import { Holding, Model, Push, State } from "../types.mjs" */
/** @import { Own, Work } from "./state.mjs" */

import { h } from "../dom.mjs";
import { bytes, duration, percent, sentence } from "../format.mjs";
import { errorText, factList } from "../parts.mjs";
import { ask } from "../state.mjs";
import { button } from "./pieces.mjs";
import { sourceWords } from "./state.mjs";

const KV_TYPES = [["", "Automatic"], ["f16", "f16"], ["q8_0", "q8_0: half"], ["q4_0", "q4_0: a quarter"]];
/** Settings that the form has; the others are shown only. */
const EDITED = ["ctx_tokens", "kv_type", "slots"];

/** @param {Model} model @param {State} state @param {Own} own */
export function detailView(model, state, own) {
  const { path, parts, reference, projector, source, problem, is_companion, also = [] } = model;
  const work = own.work[path];
  const where = own.about.where?.parts;
  const isBusy = ask(state, `model ${path}`).busy;
  const isUsable = !problem && !is_companion;
  return h("div", { key: "detail", class: "model-detail" },
    factList([
      ["Kept by", sourceWords(source)], ["On the hub", reference], ["Images", projector && mono(projector)],
      ["Also", also.length > 0 && mono(also.join("\n"))],
      [parts && parts.length > 1 ? "Files" : "File", mono(where?.length ? where.map(({ path: at, content }) => (content ? `${at} → ${content}` : at)).join("\n") : (parts?.length ? parts : [path]).join("\n"))],
    ]),
    isUsable && holdingsView(path, own, work, isBusy),
    isUsable && settingsView(path, state, own),
    work && workView(work, isBusy, path),
    errorText(state, `model ${path}`),
    h("div", { class: "row" },
      button("models/verify", "Verify", { "data-path": path, disabled: isBusy }),
      button("models/ask-remove", "Remove", { class: "danger", "data-path": path, disabled: isBusy })));
}

/** @param {string} text */
const mono = (text) => h("span", { class: "mono lines" }, text);

/** @param {string} path @param {Own} own @param {Work | undefined} work @param {boolean} isBusy */
function holdingsView(path, { about: { holdings } }, work, isBusy) {
  const rows = isBusy ? work?.rows ?? [] : [];
  const shown = holdings ?? rows.map(({ device }) => ({ ...UNKNOWN, device }));
  const problem = holdings?.find(({ plan_problem }) => plan_problem)?.plan_problem;
  const lacks = !holdings || holdings.some((each) => each.needed_held_bytes < each.needed_bytes);
  return h("div", { key: "holdings", class: "model-part" },
    h("div", { class: "row" }, h("h5", null, "Devices hold"), h("div", { class: "actions" },
      !holdings && button("models/look", "Look", { key: "look", "data-path": path, disabled: isBusy }),
      lacks && !problem && button("models/push", "Send ahead", { key: "push", "data-path": path, disabled: isBusy }))),
    problem && h("p", { class: "hint" }, `Nothing can be sent ahead: ${sentence(problem)}`),
    shown.length > 0 ? h("ul", null, shown.map((each) => holding(each, rows.find(({ device }) => device === each.device))))
      : h("p", { class: "hint" }, holdings ? "No device has joined." : "What is sent ahead need not be sent at the launch. To tell what they hold, the whole model is read once."));
}

/** @type {Holding} */
const UNKNOWN = { device: "", is_known: true, held_bytes: 0, total_bytes: 0, needed_bytes: 0, needed_held_bytes: 0, plan_problem: "" };

/** Of what a launch now gives it, else of the whole model. @param {Holding} known @param {Push} [push] what is being sent */
function holding({ device, is_known, held_bytes, total_bytes, needed_bytes, needed_held_bytes }, push) {
  const [done, whole] = push ? [push.done_bytes, push.total_bytes] : needed_bytes > 0 ? [needed_held_bytes, needed_bytes] : [held_bytes, total_bytes];
  const isWaiting = push?.state === "waiting";
  const isWhole = done >= whole && !isWaiting;
  const much = done > 0 ? bytes(done) : "nothing";
  const words = [
    isWaiting ? "waits for another push" : !is_known && !push ? "it did not answer" : isWhole ? `${much}, all that it needs` : push || needed_bytes > 0 ? `${much} of ${bytes(whole)}` : `${much}, and a launch now needs none there`,
    push && !isWhole && push.bytes_per_s > 0 && `${bytes(push.bytes_per_s)}/s`,
    push && !isWhole && push.eta_s !== null && `${duration(push.eta_s)} left`,
  ];
  return h("li", { key: device },
    h("p", { class: "row small" }, h("strong", null, device), h("span", { class: "figure" }, words.filter(Boolean).join(" · "))),
    h("progress", { max: 100, value: percent(done, whole), class: push ? "" : "quiet", "aria-label": `Weights on ${device}` }),
    push?.problem && h("p", { class: "message bad" }, sentence(push.problem)),
    push?.note && h("p", { class: "hint" }, sentence(push.note)));
}

/** @param {string} path @param {State} state @param {Own} own */
function settingsView(path, state, { about: { settings }, form_no }) {
  if (!settings) return errorText(state, `settings ${path}`);
  const set = Object.entries(settings).filter(([, value]) => !isUnset(value));
  const others = set.filter(([name]) => !EDITED.includes(name));
  const { busy } = ask(state, `settings ${path}`);
  const field = (/** @type {string} */ name, /** @type {string} */ label, /** @type {object} */ more) => h("div", { class: "field" },
    h("label", { for: `model-${name}` }, label),
    h("input", { id: `model-${name}`, name, type: "number", value: settings[name] ?? "", placeholder: "As usual", inputmode: "numeric", ...more }));
  return h("form", { key: `settings ${form_no}`, class: "model-part", "data-submit": "models/set", "data-path": path },
    h("h5", null, "Settings of this model"),
    h("p", { class: "hint" }, "Each launch of it begins with these."),
    h("div", { class: "launch-fields" },
      field("ctx_tokens", "Context, in tokens", { min: 256, max: 10_000_000 }),
      field("slots", "Slots", { min: 1, max: 256 }),
      h("div", { class: "field" }, h("label", { for: "model-kv_type" }, "KV cache"),
        h("select", { id: "model-kv_type", name: "kv_type" }, KV_TYPES.map(([value, words]) =>
          h("option", { key: value, value, selected: value === (settings.kv_type ?? "") }, words))))),
    others.length > 0 && factList(others.map(([name, value]) => [name, typeof value === "object" ? JSON.stringify(value) : String(value)])),
    errorText(state, `settings ${path}`),
    h("div", { class: "row start" }, h("button", { disabled: busy }, "Keep these"),
      set.length > 0 && button("models/unset", "Forget all", { class: "plain", "data-path": path, disabled: busy })));
}

/** @param {unknown} value */
const isUnset = (value) => value === null || value === undefined || value === "" || value === false || (Array.isArray(value) && !value.length);

export const WORK = {
  verify: "Each byte is read and compared.",
  look: "The model is read once, to know it by its parts.",
  push: "The weights go to the devices. Keep this page open; what is there stays.",
};

/** @param {Work} work @param {boolean} isBusy @param {string} path */
function workView({ kind, part, said, tone, notes }, isBusy, path) {
  if (!isBusy) return said !== "" && h("div", { key: "said", class: `message ${tone}` }, h("p", null, said), notes.map((note) => h("p", { key: note, class: "small" }, sentence(note))));
  return h("div", { key: "work", class: "model-part" },
    h("div", { class: "row" }, h("p", null, WORK[kind]),
      button("models/stop", "Stop", { "data-path": path })),
    part !== null && h("progress", { max: 1, value: part, "aria-label": "Read" }));
}
