// @ts-check
// A pull of a model from the hub: how far it is, in words and as a bar. Pure.
/** @import { Pull } from "./types.mjs" */

import { h } from "./dom.mjs";
import { bytes, duration, percent, sentence } from "./format.mjs";
import { linked } from "./parts.mjs";

/** @param {Pull} pull */
export const isWorking = ({ state }) => state === "queued" || state === "fetching" || state === "checking";

/** @param {Pull} pull */
export const pullTitle = ({ repo, label, reference }) => (repo ? `${shortRepo(repo)} ${label}`.trim() : reference);

/** What a repository is called, without its owner. @param {string} repo */
export const shortRepo = (repo) => (repo.split("/").pop() ?? repo).replace(/-GGUF$/i, "");

/** How much is there, how fast the rest comes, and how long that takes. @param {Pull} pull */
export function pullWords({ state, done_bytes, total_bytes, bytes_per_s, eta_s, detail }) {
  const isFetching = state === "fetching";
  const much = total_bytes > 0 ? `${bytes(done_bytes)} of ${bytes(total_bytes)}` : "";
  return [
    state === "done" ? `${bytes(total_bytes)}, all there` : state === "checking" ? `${bytes(total_bytes)} are there; what came is compared with the hub’s digest` : much,
    state === "queued" && (detail || "waits for its turn"),
    isFetching && bytes_per_s > 0 && `${bytes(bytes_per_s)}/s`,
    isFetching && eta_s !== null && `${duration(eta_s)} left`,
  ].filter(Boolean).join(" · ");
}

/** Its words, and its bar while there is something to come. @param {Pull} pull */
export const pullBar = (pull) => h("div", { key: "bar", class: "pull-bar" },
  h("p", { class: "row small" }, h("span", { class: "figure" }, pullWords(pull)),
    pull.state !== "done" && pull.total_bytes > 0 && h("span", { class: "figure" }, `${percent(pull.done_bytes, pull.total_bytes)} %`)),
  pull.state !== "done" && (pull.total_bytes > 0 || isWorking(pull)) && h("progress", {
    max: 100, value: percent(pull.done_bytes, pull.total_bytes), class: isWorking(pull) ? "" : "quiet", "aria-label": pullTitle(pull),
  }));

/** Why it failed, with its links. @param {Pull} pull */
export const pullProblem = ({ detail }) => detail !== "" && h("p", { key: "problem", class: "reason bad" }, linked(sentence(detail)));
