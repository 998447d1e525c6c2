// @ts-check
// Engines on the shelf of the main host: what is there, what is fetched, and which one all run.
/** @import { State } from "../types.mjs" */
/** @import { Build, Change, Install, Progress, Settings } from "./state.mjs" */

import { h } from "../dom.mjs";
import { age, bytes, duration, plural, sentence } from "../format.mjs";
import { badge, dialogView, errorText } from "../parts.mjs";
import { ask } from "../state.mjs";
import { isOver, may } from "./state.mjs";

const MOST_NAMED = 6;
const DIGEST_SHOWN = 12;
/** Every character that may not stand in an id. */
const NO_ID = /[^A-Za-z0-9_-]/g;

/** What happens in each phase of a change. @type {Record<string, (change: Change) => string>} */
const PHASES = {
  fetching: () => "Devices get it and try it out. Until then all goes on as it is.",
  stopping: () => "Deployments stop; requests wait.",
  switching: () => "The main host and its devices change over.",
  launching: () => "Deployments are launched again with it.",
  "going back": ({ build_before }) => `It failed, so all go back to ${build_before}.`,
};

/** @param {string} action @param {any} words @param {object} [more] */
const button = (action, words, more) => h("button", { type: "button", "data-action": action, ...more }, words);

/** @param {Settings} own @param {State} state @param {number} now_ms */
export function enginesCard({ shelf, install, change }, state, now_ms) {
  const isAdmin = may(state, "admin") && shelf !== null;
  const isInstalling = ask(state, "engine-install").busy;
  const isChanging = ask(state, "engine-change").busy || (change !== null && !isOver(change));
  return h("section", { class: "card stack", "aria-labelledby": "engines-title" },
    h("div", { class: "row" }, h("h3", { id: "engines-title" }, "Engines"),
      isAdmin && button("settings/install-engine", "Install newest release", { disabled: isInstalling })),
    h("p", { class: "hint" }, "Builds of llama.cpp that this main host keeps, for itself and for its devices. All run the same one; devices get it from here by themselves."),
    errorText(state, "engines"),
    !shelf && !ask(state, "engines").error && h("p", { class: "hint" }, "Waiting for the main host."),
    change && changeView(change, now_ms),
    ask(state, "engine-change").error !== change?.reason && errorText(state, "engine-change"),
    install && installView(install, isInstalling, now_ms),
    errorText(state, "engine-install"),
    shelf?.length === 0 && h("p", null, "None is kept yet: the main host runs programs of its own. A release has programs for phones, Macs and PCs."),
    shelf && shelf.length > 0 && h("ul", { class: "builds", "aria-label": "Builds" }, shelf.map((build) => row(build, isAdmin, isChanging))),
    isAdmin && h("form", { class: "row start", "data-submit": "settings/install-engine" },
      h("label", { for: "engine-build" }, "Another release"),
      h("input", { id: "engine-build", name: "build", required: true, pattern: "b?[0-9]{1,9}", title: "a release of llama.cpp, such as b10516",
        placeholder: "b10516", autocomplete: "off" }),
      h("button", { disabled: isInstalling }, "Install it")));
}

/** @param {Build} build @param {boolean} isAdmin @param {boolean} isChanging */
function row({ build, commit, is_release, runs_here, on_main_host, devices, archives }, isAdmin, isChanging) {
  const size = archives.reduce((sum, { size_bytes }) => sum + size_bytes, 0);
  const kind = [is_release ? "release" : "packed from this main host’s own programs", commit && commit !== build && commit.slice(0, DIGEST_SHOWN)];
  return h("li", { key: build },
    h("div", { class: "row" },
      h("p", { class: "row start" }, h("strong", null, build), on_main_host && badge("ready", "in use"), h("span", { class: "hint" }, kind.filter(Boolean).join(" · "))),
      isAdmin && !on_main_host && runs_here && button("settings/ask-use", ["Use this build", h("span", { class: "hidden-text" }, ` ${build}`)], { "data-build": build, disabled: isChanging })),
    devices.length > 0 && h("p", { class: "hint" }, `On ${named(devices)}.`),
    !runs_here && h("p", { class: "hint" }, "It has no programs for this main host, so it cannot be used."),
    archives.length > 0 && h("details", null, h("summary", null, `${plural(archives.length, "archive")}, ${bytes(size)}`),
      h("ul", null, archives.map(({ variant, size_bytes, sha256, is_verified }) => h("li", { key: variant, class: "row" },
        h("span", null, variant), h("span", { class: "figure" }, bytes(size_bytes), " · ", h("span", { class: "mono", title: sha256 }, `${sha256.slice(0, DIGEST_SHOWN)}…`),
          !is_verified && h("span", { class: "reason warn" }, " · no digest to compare")))))));
}

/** @param {string[]} names */
const named = (names) => (names.length > MOST_NAMED ? `${names.slice(0, MOST_NAMED).join(", ")} and ${names.length - MOST_NAMED} more` : names.join(", "));

/** @param {string} key @param {string} name @param {string} words @param {number | null} part @param {string} [tone] */
function progress(key, name, words, part, tone) {
  const id = `at-${key.replace(NO_ID, "-")}`;
  return h("li", { key }, h("p", { class: "row small", id }, h("span", null, name), h("span", { class: tone ? `figure reason ${tone}` : "figure" }, words)),
    part !== null && h("progress", { max: 1, value: part, "aria-labelledby": id }));
}

/** @param {{done_bytes: number, total_bytes: number}} step */
const partOf = ({ done_bytes, total_bytes }) => (total_bytes > 0 ? done_bytes / total_bytes : null);

/** @param {Install} install @param {boolean} isBusy @param {number} now_ms */
function installView({ build, steps, last, since_ms, said }, isBusy, now_ms) {
  const rows = Object.values(steps).filter(({ archive }) => archive);
  if (!isBusy) return said.length > 0 && h("div", { key: "installed", class: "message good" }, said.map((words) => h("p", null, words)));
  const isWaiting = rows.length === 0 && Object.values(steps).some(({ step }) => step === "waiting");
  return h("div", { key: "install", class: "work" },
    h("p", null, badge("connecting", `Installing ${build || "the newest release"}…`),
      h("span", { class: "hint" }, ` ${age((now_ms - since_ms) / 1000)} so far. Keep this page open; what is there already is kept.`)),
    isWaiting && h("p", { class: "hint" }, "Another installation is under way; this one waits for its end."),
    h("ul", null, rows.map((step) => progress(`install-${step.archive}`, variantOf(step.archive),
      step.archive === last ? installWords(step) : "is there", step.archive === last && step.step === "fetching" ? partOf(step) : null))));
}

/** For whom an archive is, by its name. @param {string} archive */
export function variantOf(archive) {
  const [, runtime = "", variant = archive] = /^(cudart-)?llama-(?:b\d+-)?(?:bin-)?(.+?)\.(?:tar\.gz|tgz|zip)$/.exec(archive) ?? [];
  return runtime ? `${variant}, its CUDA libraries` : variant;
}

/** @param {Progress} progress */
export function installWords({ step, done_bytes, total_bytes, bytes_per_s, eta_s }) {
  if (step === "proving") return "is checked and tried out";
  const isDone = total_bytes > 0 && done_bytes >= total_bytes;
  if (step !== "fetching" || isDone) return isDone ? bytes(total_bytes) : step;
  return [`${bytes(done_bytes)} of ${bytes(total_bytes)}`, bytes_per_s > 0 && `${bytes(bytes_per_s)}/s`, eta_s !== null && `${duration(eta_s)} left`].filter(Boolean).join(" · ");
}

/** @type {Record<string, string>} */
const STATES = { waiting: "waits", proving: "tries it out", ready: "has it", changed: "uses it", failed: "failed" };

/** @param {Change} change @param {number} now_ms */
function changeView(change, now_ms) {
  const { build, build_before, phase, devices, deployments, reason, started_at } = change;
  if (isOver(change)) {
    const isDone = phase === "done";
    const outcome = !isDone ? `The change from ${build_before} to ${build} failed.` : build !== build_before && `All use ${build} now, instead of ${build_before}.`;
    return h("div", { key: "changed", class: `message ${isDone ? "good" : "bad"}` }, outcome && h("p", null, outcome), reason && h("p", null, sentence(reason)));
  }
  return h("div", { key: "change", class: "work" },
    h("p", null, badge("connecting", `Changing from ${build_before} to ${build}…`), h("span", { class: "hint" }, ` ${age((now_ms - Date.parse(started_at)) / 1000)} so far.`)),
    h("p", null, PHASES[phase]?.(change) ?? phase),
    reason && h("p", { class: "reason warn" }, sentence(reason)),
    h("ul", null,
      devices.map((each) => progress(`device-${each.device}`, each.device,
        [each.state === "fetching" ? `${bytes(each.done_bytes)} of ${bytes(each.total_bytes)}` : STATES[each.state] ?? each.state, each.detail].filter(Boolean).join(": "),
        each.state === "fetching" ? partOf(each) : null, each.state === "failed" || each.state === "left out" ? "bad" : each.state === "changed" ? "good" : "")),
      Object.entries(deployments).map(([name, state]) => progress(`deployment-${name}`, name, state, null, state === "ready" ? "good" : ""))));
}

/** @param {string} build @param {State} state */
export function useDialog(build, state) {
  const running = Object.values(state.deployments).filter((each) => !["stopped", "failed"].includes(each.state)).length;
  return dialogView("use-engine", `Use ${build}?`, "settings/asked-use",
    h("ol", { class: "steps" },
      h("li", null, "Each device gets it and tries it out. Until then all goes on as it is."),
      h("li", null, running ? `Then ${running === 1 ? "the deployment stops" : `${running} deployments stop`}, and requests wait.` : "No deployment runs, so nothing has to stop."),
      h("li", null, `Main host and devices change over${running ? `, and ${running === 1 ? "it is" : "they are"} launched again` : ""}.`)),
    h("p", null, "If anything of this fails, all go back to the build of now by themselves."),
    h("div", { class: "actions" }, button("close", "Cancel", { "data-autofocus": true }),
      button("settings/use-engine", `Use ${build}`, { "data-build": build })));
}
