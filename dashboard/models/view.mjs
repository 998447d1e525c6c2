// @ts-check
// Models: what is on this host, what comes, and what else there is.
/** @import { Model, Pull, State } from "../types.mjs" */
/** @import { Own } from "./state.mjs" */

import { h, memo } from "../dom.mjs";
import { bytes, percent, plural, sentence } from "../format.mjs";
import { searchField } from "../hub.mjs";
import { badge, dialogView, errorText, viewHead } from "../parts.mjs";
import { isWorking, pullBar, pullProblem, pullTitle } from "../pull_view.mjs";
import { address } from "../routes.mjs";
import { ask } from "../state.mjs";
import { detailView, WORK } from "./detail_view.mjs";
import { getView } from "./get_view.mjs";
import { button, contextField, fitLine, launchButton, of, stem } from "./pieces.mjs";
import { listed, parameterWords, pullsInOrder, sourceWords, tokens, usersOf } from "./state.mjs";

const SHOWN = 100; // models
const SORTS = [["name", "Name"], ["size", "Largest first"], ["newest", "Newest first"], ["speed", "Fastest first"]];

/** @param {State} state */
export function modelsView(state) {
  const own = /** @type {Own} */ (state.views.models);
  const isGet = state.route.parts[0] === "get";
  const pane = (/** @type {string} */ name, /** @type {string} */ words, /** @type {boolean} */ isOn) =>
    h("a", { class: "button", href: name ? address("models", name) : address("models"), "aria-current": isOn && "page" }, words);
  return h("div", { class: "models" },
    viewHead("Models", h("p", { class: "segments" }, pane("", "On this host", !isGet), pane("get", "Get one", isGet))),
    !isGet && pullsView(state, own),
    isGet ? getView(state, own) : hereView(state, own),
    isGet && pullsView(state, own),
    removeView(state, own));
}

/** @param {State} state @param {Own} own */
function hereView(state, own) {
  const { models } = state;
  const { usable, broken, companions } = listed(models, own);
  if (!models.length) return [errorText(state, "models"), noneView(state)];
  return [
    h("div", { key: "look", class: "models-look" },
      h("div", { class: "field" }, searchField("models-filter", "Filter", "models/filter", own.filter, `Filter ${plural(models.length, "model")}`)),
      h("div", { class: "field" }, h("label", { for: "models-sort" }, "Order"),
        h("select", { id: "models-sort", "data-action": "models/sort" },
          SORTS.map(([value, words]) => h("option", { key: value, value, selected: value === own.sort }, words)))),
      contextField(own)),
    errorText(state, "models"),
    group("usable", "On this host", usable, state, own),
    group("broken", "Cannot be used", broken, state, own),
    group("companions", "Go with another model", companions, state, own),
    !usable.length && !broken.length && !companions.length && h("p", { key: "none", class: "empty" }, "None has these words."),
  ];
}

/** @param {State} state */
const noneView = (state) => (ask(state, "models").busy || !state.host ? h("p", { key: "none", class: "empty" }, "Looking for models…")
  : h("div", { key: "none", class: "empty" },
    h("p", null, "No model was found on this host. Get one from the hub, or put a GGUF file into ~/models: it appears here by itself. " +
      "What Ollama, LM Studio, llama.cpp and others keep is found, too."),
    h("p", { class: "row start" }, h("a", { class: "button primary", href: address("models", "get") }, "Get one"))));

/** @param {string} key @param {string} title @param {Model[]} models @param {State} state @param {Own} own */
function group(key, title, models, state, own) {
  if (!models.length) return null;
  return h("section", { key, class: `card ${key}`, "aria-labelledby": `models-${key}` },
    h("h3", { id: `models-${key}`, class: key === "usable" && "hidden-text" }, title),
    h("ul", { class: "model-list" }, models.slice(0, SHOWN).map((model) => row(model, state, own))),
    models.length > SHOWN && h("p", { class: "hint" }, `${models.length - SHOWN} more. Type some letters above to find one.`));
}

/** @param {Model} model @param {State} state @param {Own} own */
function row(model, state, own) {
  const { path, is_companion, problem, warning } = model;
  const known = own.fits[path];
  const isOpen = own.open === path;
  const work = !isOpen && ask(state, `model ${path}`).busy ? own.work[path] : undefined;
  const users = usersOf(state, model).map(({ id, state: is }) => ({ id, is })).filter(({ is }) => is !== "stopped");
  const make = () => h("li", { class: "model", "data-fit": !problem && !is_companion && path },
    h("div", { class: "row" },
      h("h4", null, stem(model)),
      h("div", { class: "actions" },
        h("button", { type: "button", class: "plain", "data-action": "models/open", "data-path": isOpen ? "" : path, "aria-expanded": String(isOpen) },
          "Details", of(`of ${stem(model)}`)),
        !problem && !is_companion && launchButton(path, stem(model)))),
    h("p", { class: "hint" }, factsOf(model).join(" · ")),
    problem ? brokenView(model) : !is_companion && fitView(known),
    warning && h("p", { class: "small reason warn" }, sentence(warning)),
    users.map(({ id, is }) => h("p", { key: id, class: "small" }, badge(is, h("a", { href: address("deployments", id) }, id)), ` ${is}`)),
    work && h("p", { key: "work", class: "hint" }, WORK[work.kind], work.part !== null && ` ${percent(work.part, 1)} %`),
    isOpen && detailView(model, state, own));
  return memo(path, [model, known, own.no, work, users.map(({ id, is }) => id + is).join(), isOpen && state], make);
}

/** @param {Model} model */
const factsOf = ({ architecture, parameters, quantisation, size_bytes, ctx_train_tokens, parts, source, projector, is_read }) => /** @type {string[]} */ ([
  is_read === false && "looking into it…", architecture, parameters && parameterWords(parameters), quantisation, bytes(size_bytes),
  parts && parts.length > 1 && `${parts.length} files`, ctx_train_tokens && `trained with ${tokens(ctx_train_tokens)}`,
  projector && "sees images", sourceWords(source),
].filter(Boolean));

/** @param {import("./state.mjs").KnownFit | undefined} known */
function fitView(known) {
  if (!known) return h("p", { class: "model-fit hint" }, "Looking whether it fits…");
  if (!known.fit) return h("p", { class: "model-fit hint" }, sentence(known.problem));
  return fitLine(known.fit);
}

/** The text without what stands beside it anyway. @param {string} text @param {string} start @param {string} end */
const without = (text, start, end) => text.slice(text.startsWith(start) ? start.length : 0, text.endsWith(end) ? -end.length : undefined);

/** @param {Model} model */
const brokenView = ({ path, problem = "", remedy = "" }) => h("div", { class: "model-fit" },
  h("p", { class: "reason bad" }, sentence(without(problem, `${path} `, `; ${remedy}`))), remedy && h("p", null, sentence(remedy)));

/** @param {State} state @param {Own} own */
function pullsView(state, own) {
  const pulls = pullsInOrder(state.pulls);
  if (!pulls.length) return null;
  return h("section", { key: "pulls", class: "card", "aria-labelledby": "models-pulls" },
    h("h3", { id: "models-pulls" }, "Pulls"),
    h("ul", { class: "model-list" }, pulls.map((pull) => pullRow(pull, state, own))));
}

/** One button, whatever it says, and at any time: it keeps the focus. */
const GO = { key: "go", disabled: false };
/** @type {Record<string, string>} */
const PULL_TONES = { queued: "stopped", paused: "stopped", checking: "fetching", done: "ready" };

/** @param {Pull} pull @param {State} state @param {Own} own */
function pullRow(pull, state, own) {
  const { id, state: is, path, deployments } = pull;
  const { busy } = ask(state, `pull ${id}`);
  const title = pullTitle(pull);
  const isAsking = own.asking === `pull ${id}`;
  const act = (/** @type {string} */ action, /** @type {string} */ words, /** @type {object} */ more) =>
    button(action, [words, of(title)], { "data-id": id, disabled: busy, ...more });
  return h("li", { key: id, class: "model" },
    h("div", { class: "row" },
      h("h4", null, title), badge(PULL_TONES[is] ?? is, is),
      h("div", { class: "actions" },
        is === "failed" ? act("models/resume", "Try again", GO) : is === "paused" ? act("models/resume", "Resume", GO) : isWorking(pull) && is !== "checking" && act("models/pause", "Pause", GO),
        is === "done" ? act("models/drop", "Dismiss") : !isAsking && act("models/ask-drop", "Remove", { key: "remove" }),
        is === "done" && path && launchButton(path, title))),
    pullBar(pull),
    is === "failed" ? pullProblem(pull) : is !== "queued" && pull.detail && h("p", { class: "hint" }, sentence(pull.detail)),
    isAsking && h("div", { key: "asking", class: "row start", role: "alert" }, h("p", null, `What was fetched of it, ${bytes(pull.done_bytes)}, is deleted.`),
      act("models/drop", "Yes, remove it", { class: "danger" }), act("models/asked", "Keep it", { "data-autofocus": true })),
    deployments.length > 0 && is !== "done" && h("p", { class: "hint" }, `${deployments.join(", ")} ${deployments.length > 1 ? "wait" : "waits"} for it.`),
    errorText(state, `pull ${id}`));
}

/** What goes, what stays, and whom it concerns; or why it cannot be removed. @param {State} state @param {Own} own */
function removeView(state, { asking, removal }) {
  const model = state.models.find(({ path }) => path === asking);
  if (!model) return null;
  const { busy } = ask(state, "models/remove");
  const list = (/** @type {string[]} */ all) => h("ul", { class: "sentences" }, all.map((each) => h("li", { key: each }, each)));
  return dialogView("remove-model", `Remove ${stem(model)}?`, "models/asked",
    !removal && busy && h("p", { class: "hint" }, "Looking what would go…"),
    removal && [
      h("p", null, `${bytes(removal.freed_bytes)} become free. What goes:`), h("div", { class: "mono" }, list(removal.deletes)),
      removal.keeps.length > 0 && [h("p", null, "What stays:"), list(removal.keeps)],
      removal.deployments.length > 0 && h("p", { class: "message warn" }, `${removal.deployments.join(", ")} cannot be started without it.`),
      h("p", { class: "hint" }, "Devices keep what they hold of it until they need the room."),
    ],
    errorText(state, "models/remove"),
    h("div", { class: "actions" }, button("close", "Keep it", { "data-autofocus": true }),
      removal && button("models/remove", busy ? "Removing…" : "Remove", { class: "danger", "data-path": model.path, disabled: busy })));
}
