// @ts-check
// Deployments: one card each, from what was asked to what runs and why.
/** @import { Deployment, LaunchRecord, Link, Plan, State } from "./types.mjs" */

import { h } from "./dom.mjs";
import { age, bytes, deploymentName, duration, linkWords, percent, plural, secondsSince, speed } from "./format.mjs";
import { badge, copyable, factList, tone } from "./parts.mjs";

/** What a state means, for when the main host gave no reason. @type {Record<string, string>} */
const MEANINGS = {
  pending: "Waiting for a plan.",
  fetching: "Fetching the model.",
  ready: "Answering requests.",
  degraded: "Its processes live, but it does not answer as it should.",
  backoff: "The last launch ended; another one is due.",
  stopping: "Ending its processes.",
  stopped: "Nothing runs, as you asked.",
  failed: "Nothing runs. See the logs for the cause.",
};
/** Phases of a launch: name, label, what happens. */
const PHASES = [
  ["plan", "Plan", "Placing the layers."],
  ["workers", "Workers", "Starting the workers."],
  ["verify", "Verify", "Checking every worker from the main host."],
  ["connect", "Connect", "llama-server is connecting to its workers."],
  ["load", "Load", "Loading the weights."],
  ["first token", "First token", "Waiting for the first token."],
];
const COLOURS = 6;

/** @param {State} state @param {number} now_ms */
export function deploymentsView(state, now_ms) {
  const cards = Object.values(state.deployments).map((each) => deploymentCard(each, state, now_ms));
  if (cards.length) return cards;
  const hasDevice = Object.values(state.devices).some((device) => device.state === "ready");
  const next = hasDevice ? "Choose a model in the launch form and press Launch." : "Add a device first, then launch a model.";
  return h("p", { class: "empty" }, state.host ? `Nothing is deployed. ${next}` : "Waiting for the main host.");
}

/** @param {Deployment} deployment @param {State} state @param {number} now_ms */
function deploymentCard(deployment, state, now_ms) {
  const { id, spec, plan, port, loads, links, timeline, launch_id, tokens_per_second } = deployment;
  const isStarting = ["fetching", "starting"].includes(deployment.state);
  const error = state.actions[id]?.error;
  return h("article", { key: id, class: "card deployment", id: `deployment-${id}`, "aria-labelledby": `title-${id}` },
    h("header", { class: "row" },
      h("h3", { id: `title-${id}` }, deploymentName(deployment)),
      badge(deployment.state, stateWords(deployment, now_ms)),
      actionsView(deployment, state)),
    messageView(deployment, now_ms),
    error && h("p", { key: "error", class: "error", role: "alert" }, error),
    isStarting && stepsView(deployment),
    isStarting && loads.length > 0 && loadsView(deployment),
    links.length > 0 && linksView(links),
    factList([
      ["Speed", tokens_per_second != null && speed(tokens_per_second)],
      ["Model", plan ? `${plan.model.name}, ${bytes(plan.model.size_bytes)}` : spec.model],
      ["Context", `${(plan?.ctx_tokens ?? spec.ctx_tokens).toLocaleString("en")} tokens`],
      ["Slots", spec.slots > 1 && spec.slots],
      ["Port", port],
      ["Launch", launch_id],
    ], "wide"),
    deployment.state === "ready" && state.host &&
      copyable(state, `api-${id}`, `OpenAI API, model ${id}`, `${state.host.url}/v1`),
    plan && planView(plan),
    timeline.length > 0 && timelineView(deployment),
    launch_id !== null && [
      h("details", { key: "commands", "data-panel": "commands", "data-id": id },
        h("summary", null, "Exact command"), commandsView(id, state)),
      h("details", { key: "logs", "data-panel": "logs", "data-id": id },
        h("summary", null, "Logs"), logsView(deployment, state)),
    ]);
}

/** @param {Deployment} deployment */
const isOver = ({ state }) => state === "stopped" || state === "failed";

/** @param {Deployment} deployment @param {number} now_ms */
function stateWords(deployment, now_ms) {
  const { state, since } = deployment;
  const seconds = secondsSince(since, now_ms);
  if (seconds === null) return state;
  return isOver(deployment) ? `${state} ${age(seconds)} ago` : `${state} for ${age(seconds)}`;
}

/** @param {Deployment} deployment @param {State} page */
function actionsView(deployment, page) {
  const { id } = deployment;
  const button = (/** @type {string} */ action, /** @type {string} */ label, kind = "") =>
    h("button", { key: action, type: "button", class: kind, "data-action": action, "data-id": id, disabled: page.actions[id]?.busy },
      label, h("span", { class: "hidden-text" }, ` ${deploymentName(deployment)}`));
  return h("div", { class: "actions" },
    isOver(deployment) ? [button("start", "Start"), button("remove", "Remove", "danger")]
    : deployment.state !== "stopping" && button("stop", "Stop"));
}

/** @param {Deployment} deployment @param {number} now_ms */
function messageView(deployment, now_ms) {
  const { state, phase, reason, error_code, failures, retry_at } = deployment;
  const wait_s = state === "backoff" ? -(secondsSince(retry_at, now_ms) ?? 0) : 0;
  const notes = [
    wait_s > 0 && `next launch in ${age(wait_s)}`,
    failures > 0 && `${plural(failures, "failure")} in a row`,
    error_code,
  ].filter(Boolean);
  const meaning = state === "starting" ? PHASES[phaseIndex(deployment)]?.[2] ?? phase : MEANINGS[state];
  return h("div", { class: `message ${tone(state)}` },
    h("p", null, reason || meaning || state),
    state !== "stopped" && notes.length > 0 && h("p", { class: "hint" }, notes.join(" · ")));
}

/** @param {Deployment} deployment */
const phaseIndex = ({ phase }) => PHASES.findIndex(([name]) => name === phase.replaceAll("_", " "));

/** @param {Deployment} deployment */
function stepsView(deployment) {
  const current = phaseIndex(deployment);
  return h("ol", { key: "steps", class: "steps", "aria-label": "Phases of this launch" }, PHASES.map(([, label], index) =>
    h("li", { class: index < current && "done", "aria-current": index === current && "step" },
      label, index < current && h("span", { class: "hidden-text" }, " done"))));
}

/** @param {Deployment} deployment */
function loadsView({ loads }) {
  return h("ul", { key: "loads", class: "lines", "aria-label": "Weights loaded on each worker" }, loads.map(
    ({ device, loaded_bytes, weight_bytes }) => h("li", null,
      h("span", null, device),
      h("progress", { max: 100, value: percent(loaded_bytes, weight_bytes), "aria-label": `${device}, weights loaded` }),
      h("span", { class: "figure" }, `${bytes(Math.min(loaded_bytes, weight_bytes))} of ${bytes(weight_bytes)}`))));
}

/** @param {Link[]} links */
function linksView(links) {
  return h("ul", { key: "links", class: "hint", "aria-label": "Links to the workers" }, links.map((link) =>
    h("li", null, h("strong", null, link.device), ` ${linkWords(link)}`)));
}

/** @param {Plan} plan */
function planView({ shards, host, reasons, model, prediction }) {
  const own = { device: "Main host", ggml_device: "CPU", ...host };
  const places = host.layers > 0 ? [own, ...shards] : shards;
  const devices = new Set(places.map(({ device }) => device)).size;
  const expected = prediction ? `, ${speed(prediction.decode_tokens_per_s)} expected` : "";
  return h("section", { key: "plan", class: "plan", "aria-label": "Plan" },
    h("h4", null, `Plan: ${plural(model.block_count, "layer")} and the output layer on ${plural(devices, "device")}${expected}`),
    h("div", { class: "bar layers", "aria-hidden": "true" }, places.map(({ layers }, index) =>
      h("span", { class: `c${index % COLOURS}`, vars: { "--part": layers } }, layers))),
    h("ul", { class: "legend" }, places.map((place, index) =>
      h("li", { class: `c${index % COLOURS}` }, h("strong", null, place.device),
        ` ${place.ggml_device}, ${plural(place.layers, "layer")}${place.has_output ? " with output" : ""}, `,
        `${bytes(place.peak_bytes)} of ${bytes(place.available_bytes)} available`))),
    reasons.length > 0 && h("details", { key: "why" }, h("summary", null, "Why this plan"),
      h("ul", { class: "hint" }, reasons.map((reason) => h("li", null, reason)))));
}

/** @param {Deployment} deployment */
function timelineView({ timeline }) {
  const total_s = Math.max(...timeline.map(({ at_s }) => at_s), 0.001);
  return h("details", { key: "timeline" },
    h("summary", null, `Timeline, ${duration(total_s)}`),
    h("ol", { class: "lines" }, timeline.map(({ name, at_s, took_s }) => h("li", null,
      h("span", null, name),
      h("span", { class: "track", "aria-hidden": "true" },
        h("span", { vars: { "--from": Math.max(0, at_s - took_s) / total_s, "--part": took_s / total_s } })),
      h("span", { class: "figure" }, duration(took_s))))));
}

/** @param {string} id @param {State} state */
function commandsView(id, state) {
  const panel = state.commands[id];
  if (!panel) return null;
  if (panel.error) return h("p", { class: "error" }, panel.error);
  if (!panel.record) return h("p", { class: "hint" }, "Asking the main host…");
  return h("div", { class: "panel" },
    panel.commands.map(({ host, command }, index) => copyable(state, `command-${id}-${index}`, `On ${host}`, command)),
    environmentView(panel.record));
}

/** @param {LaunchRecord} record */
function environmentView({ environment, workers }) {
  const rows = [{ device: "llama-server", environment }, ...workers].flatMap((process) =>
    Object.entries(process.environment).map((entry) => [process.device, ...entry]));
  if (!rows.length) return h("p", { class: "hint" }, "No environment variable was set.");
  return h("table", null,
    h("caption", null, "Environment"),
    h("thead", null, h("tr", null, ["Process", "Variable", "Value"].map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", null, rows.map((row) => h("tr", null, row.map((cell) => h("td", null, cell))))));
}

/** @param {Deployment} deployment @param {State} state */
function logsView({ id, plan }, state) {
  const log = state.logs[id];
  if (!log) return null;
  const processes = ["llama-server", "link", ...new Set(plan?.shards.map(({ device }) => device))];
  return h("div", { class: "panel" },
    h("div", { class: "row start" },
      h("label", null, "Process ", h("select", { "data-action": "log-process", "data-id": id }, processes.map((name) =>
        h("option", { key: name, selected: name === log.process }, name)))),
      h("label", { class: "choice" },
        h("input", { type: "checkbox", "data-action": "log-follow", "data-id": id, checked: log.follow }), "Follow"),
      h("small", null, log.file)),
    log.error && h("p", { class: "error" }, log.error),
    h("pre", { class: "log", tabindex: 0, role: "region", "aria-label": `Log of ${log.process}`, "data-follow": log.follow },
      log.text || (log.file ? "Nothing was logged yet." : "Asking the main host…")));
}
