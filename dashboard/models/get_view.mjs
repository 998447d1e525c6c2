// @ts-check
// Getting a model: by task, by searching the hub, or from one repository of it.
/** @import { State, Suggestion } from "../types.mjs" */
/** @import { Own } from "./state.mjs" */

import { h } from "../dom.mjs";
import { bytes, sentence } from "../format.mjs";
import { reposView, searchField } from "../hub.mjs";
import { badge, errorText } from "../parts.mjs";
import { isWorking, pullBar, pullProblem, shortRepo } from "../pull_view.mjs";
import { address } from "../routes.mjs";
import { ask } from "../state.mjs";
import { button, contextField, fitLine, launchButton, of } from "./pieces.mjs";
import { suggestWanted } from "./state.mjs";

const TASKS = [["", "Anything"], ["chat", "Chat"], ["code", "Code"], ["reasoning", "Reasoning"], ["vision", "Images"], ["multilingual", "Many languages"], ["small", "Small"]];

/** @param {State} state @param {Own} own */
export function getView(state, own) {
  const [, repo] = state.route.parts;
  const { hub: { text, repos }, task } = own;
  return [
    h("div", { key: "look", class: "models-look" },
      h("div", { class: "field" }, searchField("models-hub", "Search the hub", "models/hub", text, "Search the hub, such as gemma 3 4b")),
      contextField(own)),
    !repo && text !== "" && errorText(state, "models/hub"),
    repo ? h("div", { key: "repo", class: "row" }, h("h3", null, repo), h("a", { href: address("models", "get") }, text ? "Other results" : "Other models"))
      : text ? h("section", { key: "repos", class: "card", "aria-label": "Found on the hub" },
        repos ? reposView(repos, "models/repo", state.updated_ms) : !ask(state, "models/hub").error && h("p", { class: "hint" }, "Asking the hub…"))
        : h("div", { key: "tasks", class: "segments", role: "group", "aria-label": "What for" }, TASKS.map(([name, words]) =>
          button("models/task", words, { key: name, "data-task": name, "aria-pressed": String(name === task) }))),
    (repo || !text) && suggestionsView(state, own, repo ?? ""),
  ];
}

/** @param {State} state @param {Own} own @param {string} repo "" of several */
function suggestionsView(state, { found }, repo) {
  const isAsked = found.key === suggestWanted(state).key;
  if (ask(state, "models/suggest").error) return h("div", { key: "refused", class: "card models-waits" },
    errorText(state, "models/suggest"), h("p", { class: "row start" }, button("models/again", "Try again")));
  const { answer } = found;
  if (!isAsked || !answer) return h("div", { key: "suggesting", class: "card models-waits" },
    h("p", { class: "hint" }, `${found.step && isAsked ? sentence(found.step).replace(/\.$/, "…") : "Looking what fits here…"} Nothing is fetched for it but the head of each file.`),
    found.part !== null && h("progress", { max: 1, value: found.part, "aria-label": "Looked at" }));
  const { suggestions, words, notes = [] } = answer;
  if (!suggestions.length) return h("p", { key: "nothing", class: "empty" }, words || (repo ? "It has no GGUF file." : "There is nothing to suggest for it. Search the hub instead."));
  const worth = (/** @type {Suggestion} */ { is_recommended, fit }) => (is_recommended ? 2 : +fit.fits);
  const list = [...suggestions].sort((a, b) => worth(b) - worth(a)); // as told, else
  return h("section", { key: "suggestions", class: "card stack", "aria-label": "Suggestions" },
    !repo && h("h3", { class: "hidden-text" }, "Suggestions"),
    !list[0].is_recommended && words && h("p", { class: "message warn" }, words),
    h("ul", { class: "model-list" }, list.map((each) => row(each, state, repo))),
    notes.length > 0 && h("details", null, h("summary", null, "Notes"), h("ul", { class: "sentences" }, notes.map((note) => h("li", { key: note }, sentence(note))))));
}

/** @param {Suggestion} suggestion @param {State} state @param {string} repo */
function row({ reference, label, size_bytes, fit, is_recommended, reason, about, licence, ...of_repo }, state, repo) {
  const pulls = Object.values(state.pulls).filter((each) => each.reference === reference || (each.repo === of_repo.repo && each.label === label));
  const pull = pulls.find(({ state: is }) => is !== "done");
  const here = state.models.find((model) => model.reference === reference && !model.problem);
  const hasCome = pulls.length > 0 && ask(state, "models").busy; // and will be listed in a moment
  const key = `get ${reference}`;
  const name = repo ? label : shortRepo(of_repo.repo);
  const size = `${fit.is_estimate ? "≈ " : ""}${bytes(size_bytes)}`;
  return h("li", { key: reference, class: `model ${is_recommended ? "is-best" : ""}` },
    h("div", { class: "row" },
      h("h4", null, name, " ", h("span", { class: "figure" }, repo ? size : `${label} · ${size}`)),
      is_recommended && badge("ready", "recommended"),
      h("div", { class: "actions" },
        !repo && h("a", { class: "button plain", href: address("models", "get", of_repo.repo) }, "All sizes", of(`of ${of_repo.repo}`)),
        !here && !pull && !hasCome && button("models/get", ["Get it", of(reference)], { "data-reference": reference, disabled: ask(state, key).busy }),
        fit.fits && launchButton(here?.path ?? reference, reference))),
    (about || licence) && h("p", { class: "hint" }, [about && sentence(about), licence && `Licence: ${licence}.`].filter(Boolean).join(" ")),
    fitLine(fit, here && h("small", null, "It is on this host already.")),
    is_recommended && whyView(reason),
    pull && pullBar(pull), pull && !isWorking(pull) && (pull.state === "failed" ? pullProblem(pull) : h("p", { class: "hint" }, "It is paused.")),
    errorText(state, key));
}

/** Why it is recommended, without the figures that stand above. @param {string} reason */
function whyView(reason) {
  const words = reason.replace(/^[^;]* tokens fit[^;]*(; |$)/, "");
  return words && h("p", { class: "small" }, sentence(words));
}

