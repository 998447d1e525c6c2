// @ts-check
// Which model: a file on this host, a repository of the hub, or a path; and the one that was picked.
/** @import { State } from "../types.mjs" */
/** @import { Own } from "./state.mjs" */

import { h, memo } from "../dom.mjs";
import { bytes, plural } from "../format.mjs";
import { option, reposView, searchField } from "../hub.mjs";
import { errorText } from "../parts.mjs";
import { ask } from "../state.mjs";
import { isOnHub, modelsHere } from "./spec.mjs";

const SHOWN = 200; // models
const FEW = 5; // models, which need no filter
const PANES = [["here", "Files here"], ["hub", "Search the hub"], ["path", "Path"]];

/** @param {State} state @param {Own} own */
export function chosenView({ models }, { form: { model }, plan, picker_no }) {
  const here = models.find(({ path }) => path === model);
  const facts = plan.answer?.plan.model;
  const size = facts?.size_bytes ?? here?.size_bytes;
  const notes = [facts?.architecture, size && bytes(size), facts && plural(facts.block_count, "layer"), isOnHub(model) && "on the hub"];
  return h("section", { key: "chosen", class: "card launch-chosen", "aria-label": "Model" },
    h("div", null,
      h("h3", null, here?.name ?? facts?.name ?? model.split("/").pop()),
      h("p", { class: "hint" }, notes.filter(Boolean).join(" · "))),
    h("button", {
      type: "button", "data-action": "launch/picker", "data-picker": isOnHub(model) ? "hub" : "here", "data-autofocus": picker_no > 0,
    }, "Change"));
}

/** @param {State} state @param {Own} own */
export function pickerView(state, own) {
  const { picker, picker_no, form } = own;
  /** @type {Record<string, (state: State, own: Own) => any>} */
  const panes = { here: hereView, hub: hubView, path: pathView };
  return h("section", { key: "picker", class: "card launch-picker", "aria-labelledby": "launch-pick" },
    h("div", { class: "row" },
      h("h3", { id: "launch-pick" }, "Which model?"),
      form.model && h("button", { type: "button", class: "plain", "data-action": "launch/picker", "data-picker": "" }, "Cancel")),
    h("div", { class: "segments" }, PANES.map(([pane, words]) => h("button", {
      key: pane, type: "button", "data-action": "launch/picker", "data-picker": pane,
      "aria-pressed": String(pane === picker), "data-autofocus": picker_no > 0 && pane === picker,
    }, words))),
    h("div", { key: `${picker} ${picker_no}`, class: "stack" }, panes[picker](state, own)));
}

/** @param {State} state @param {Own} own */
function hereView(state, { filter }) {
  const models = modelsHere(state.models, state.deployments);
  const sought = filter.toLowerCase().split(/\s+/);
  const found = models.filter(({ path }) => sought.every((word) => path.toLowerCase().includes(word))).slice(0, SHOWN);
  const none = models.length ? "None is called so."
    : "No GGUF file was found in the model folders. Search the hub for one, or give a path.";
  return [
    models.length > FEW && searchField("launch-filter", "Filter", "launch/filter", filter, `Filter ${plural(models.length, "model")}`),
    found.length ? memo("models", [models.length, state.models, filter], () => h("ul", { class: "launch-options" }, found.map(({ path, name, size_bytes }) =>
      option("launch/pick", { "data-model": path }, name, bytes(size_bytes), path.slice(0, path.lastIndexOf("/"))))))
      : h("p", { class: "hint" }, none),
    errorText(state, "models"),
    h("button", { type: "button", class: "link", "data-action": "launch/models", disabled: ask(state, "models").busy }, "Look again"),
  ];
}

/** @param {State} state @param {Own} own */
function hubView(state, { hub: { text, repos, repo, files } }) {
  return [
    searchField("launch-hub", "Search the hub", "launch/hub", text, "Such as gemma 3 4b"),
    errorText(state, "launch/hub"),
    ask(state, "launch/hub").busy && h("p", { class: "hint" }, "Asking the hub…"),
    repo ? repoView(repo, files) : repos && reposView(repos, "launch/repo", state.updated_ms),
  ];
}

/** @param {string} repo @param {any[] | null} files null: not known yet */
const repoView = (repo, files) => [
  h("div", { class: "row" }, h("h4", null, repo),
    h("button", { type: "button", class: "link", "data-action": "launch/repo", "data-repo": "" }, "Other results")),
  files && (files.length ? h("ul", { class: "launch-options" }, files.map(({ reference, label, size_bytes, parts }) =>
    option("launch/pick", { "data-model": reference }, label, `${bytes(size_bytes)}${parts > 1 ? ` in ${parts} files` : ""}`)))
    : h("p", { class: "hint" }, "It has no GGUF file.")),
];

const pathView = () => h("form", { class: "field", "data-submit": "launch/path" },
  h("label", { for: "launch-path" }, "Path of a .gguf file, or OWNER/REPO:QUANT"),
  h("input", {
    id: "launch-path", name: "path", placeholder: "/models/gemma-3-4b-it-Q4_K_M.gguf", autocomplete: "off", spellcheck: "false", required: true,
  }),
  h("p", { class: "hint" }, "Of a model in several files, the first."),
  h("button", null, "Use it"));
