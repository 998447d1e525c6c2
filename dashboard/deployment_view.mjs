// @ts-check
// Deployments: one card each, from what was asked to what runs and why.

import { stateBadge } from "./devices_view.mjs";
import { h } from "./dom.mjs";
import { age, bytes, deploymentName, duration, grouped, percent, plural, secondsSince, speed } from "./format.mjs";

/** @typedef {import("./types.mjs").State} State */
/** @typedef {import("./types.mjs").Deployment} Deployment */

/** @type {Record<string, string>} */
const TONES = {
  pending: "busy", fetching: "busy", starting: "busy", stopping: "busy",
  ready: "good", degraded: "warn", backoff: "warn", failed: "bad", stopped: "off",
};
/** What a state means, for when the main host gave no reason. @type {Record<string, string>} */
const MEANINGS = {
  pending: "Waiting for a plan.",
  fetching: "Fetching the model.",
  starting: "Starting.",
  ready: "Answering requests.",
  degraded: "Its processes live, but it does not answer as it should.",
  backoff: "The last launch ended; another one is due.",
  stopping: "Ending its processes.",
  stopped: "Nothing runs, as you asked.",
  failed: "Nothing runs. See the logs for the cause.",
};
const STEPS = [
  ["plan", "Plan"], ["workers", "Workers"], ["verify", "Verify"],
  ["connect", "Connect"], ["load", "Load"], ["first token", "First token"],
];
const SEGMENT_COLOURS = 6;

/** @param {State} state @param {number} now_ms */
export function deploymentsView(state, now_ms) {
  const deployments = Object.values(state.deployments);
  if (deployments.length) return deployments.map((deployment) => deploymentCard(deployment, state, now_ms));
  if (!state.host) return [h("p", { class: "empty" }, "Waiting for the main host.")];
  const hasDevice = Object.values(state.devices).some((device) => device.state === "ready");
  const next = hasDevice ? "Choose a model in the launch form and press Launch." : "Add a device first, then launch a model.";
  return [h("p", { class: "empty" }, `Nothing is deployed. ${next}`)];
}

/** @param {Deployment} deployment @param {State} state @param {number} now_ms */
function deploymentCard(deployment, state, now_ms) {
  const { id, plan, launch_id } = deployment;
  const isStarting = deployment.state === "starting" || deployment.state === "fetching";
  const error = state.actions[id]?.error;
  return h("article", { key: id, class: "card deployment", id: `deployment-${id}`, "aria-labelledby": `title-${id}` },
    h("header", { class: "card-head" },
      h("h3", { id: `title-${id}` }, deploymentName(deployment)),
      stateBadge(TONES[deployment.state] ?? "off", stateWords(deployment, now_ms)),
      actionsView(deployment, state)),
    h("div", { key: "message", class: `message ${TONES[deployment.state] ?? "off"}` }, messageView(deployment, now_ms)),
    error && h("p", { key: "error", class: "error", role: "alert" }, error),
    isStarting && stepsView(deployment),
    isStarting && deployment.loads.length > 0 && loadsView(deployment),
    h("dl", { class: "facts wide" }, factRows(deployment).map(([name, value]) =>
      h("div", { key: name }, h("dt", null, name), h("dd", null, value)))),
    plan && plan.shards.length > 0 && planView(plan),
    deployment.timeline.length > 0 && timelineView(deployment),
    launch_id !== null && h("details", { key: "command", "data-panel": "commands", "data-id": id },
      h("summary", null, "Exact command"), commandsView(deployment, state)),
    launch_id !== null && h("details", { key: "logs", "data-panel": "logs", "data-id": id },
      h("summary", null, "Logs"), logsView(deployment, state)));
}

/** @param {Deployment} deployment @param {number} now_ms */
function stateWords({ state, since }, now_ms) {
  const seconds = secondsSince(since, now_ms);
  return seconds === null ? state : `${state} for ${age(seconds)}`;
}

/** @param {Deployment} deployment @param {number} now_ms */
function messageView(deployment, now_ms) {
  const { state, reason, error_code, failures } = deployment;
  const wait = state === "backoff" ? -(secondsSince(deployment.retry_at, now_ms) ?? 0) : 0;
  const notes = [
    wait > 0 && `next launch in ${age(wait)}`,
    failures > 0 && state !== "stopped" && `${plural(failures, "failure")} in a row`,
    state !== "stopped" && error_code,
  ].filter(Boolean);
  return [
    h("p", { class: "reason" }, reason || MEANINGS[state] || state),
    notes.length > 0 && h("p", { class: "notes" }, notes.join(" · ")),
  ];
}

/** @param {Deployment} deployment @param {State} page */
function actionsView({ id, state, spec }, page) {
  const isBusy = page.actions[id]?.busy ?? false;
  const button = (/** @type {string} */ action, /** @type {string} */ label, /** @type {string} */ kind = "") =>
    h("button", { key: action, type: "button", class: kind, "data-action": action, "data-id": id, disabled: isBusy },
      label, h("span", { class: "hidden-text" }, ` ${deploymentName({ spec })}`));
  if (state === "stopping") return h("div", { class: "actions" });
  const isOver = state === "stopped" || state === "failed";
  return h("div", { class: "actions" },
    isOver ? [button("start", "Start"), button("remove", "Remove", "danger")] : button("stop", "Stop"));
}

/** @param {Deployment} deployment @returns {[string, string][]} */
function factRows({ spec, plan, port, launch_id, tokens_per_second }) {
  /** @type {[string, string | null | false][]} */
  const rows = [
    ["Speed", tokens_per_second !== null && speed(tokens_per_second)],
    ["Model", plan ? `${plan.model.name}, ${bytes(plan.model.size_bytes)}` : spec.model],
    ["Context", `${grouped(plan?.ctx_tokens ?? spec.ctx_tokens)} tokens`],
    ["Slots", spec.slots > 1 && String(spec.slots)],
    ["Port", port !== null && String(port)],
    ["Launch", launch_id !== null && `#${launch_id}`],
  ];
  return rows.flatMap(([name, value]) => (value ? [/** @type {[string, string]} */ ([name, value])] : []));
}

/** @param {Deployment} deployment */
function stepsView({ phase }) {
  const name = phase.replaceAll("_", " ").toLowerCase();
  const current = STEPS.findIndex(([step]) => step === name);
  // A phase that this page does not know is shown after the ones it does.
  const steps = current < 0 && name ? [...STEPS, [name, phase]] : STEPS;
  const at = current < 0 && name ? STEPS.length : current;
  return h("ol", { key: "steps", class: "steps", "aria-label": "Phases of this launch" }, steps.map(([step, label], index) =>
    h("li", { key: step, class: index < at ? "done" : "", "aria-current": index === at ? "step" : null },
      label, index < at && h("span", { class: "hidden-text" }, " done"))));
}

/** @param {Deployment} deployment */
function loadsView({ loads }) {
  return h("ul", { key: "loads", class: "loads", "aria-label": "Weights loaded on each worker" }, loads.map((load, index) =>
    h("li", { key: `${index} ${load.device}` },
      h("span", null, load.device),
      h("progress", { max: 100, value: percent(load.loaded_bytes, load.weight_bytes), "aria-label": `${load.device}, weights loaded` }),
      h("span", { class: "figure" }, `${bytes(Math.min(load.loaded_bytes, load.weight_bytes))} of ${bytes(load.weight_bytes)}`))));
}

/** @param {import("./types.mjs").Plan} plan */
function planView({ shards, reasons, model }) {
  const colour = (/** @type {number} */ index) => `segment c${index % SEGMENT_COLOURS}`;
  return h("section", { key: "plan", class: "plan", "aria-label": "Plan" },
    h("h4", null, `Plan: ${plural(model.block_count, "layer")} and the output layer on ${plural(shards.length, "device")}`),
    h("div", { class: "bar layers", "aria-hidden": "true" }, shards.map((shard, index) =>
      h("span", { key: index, class: colour(index), vars: { "--part": shard.layers } }, shard.layers))),
    h("ul", { class: "legend" }, shards.map((shard, index) =>
      h("li", { key: index, class: colour(index) },
        h("strong", null, shard.device), ` ${shard.ggml_device}, ${plural(shard.layers, "layer")}${shard.has_output ? " with output" : ""}, `,
        `${bytes(shard.weight_bytes)} of ${bytes(shard.available_bytes)} available`))),
    reasons.length > 0 && h("p", { class: "hint" }, `Why: ${reasons.join("; ")}.`));
}

/** @param {Deployment} deployment */
function timelineView({ timeline }) {
  const total = Math.max(...timeline.map((each) => each.at_s), 0.001);
  return h("details", { key: "timeline" },
    h("summary", null, `Timeline, ${duration(total)}`),
    h("ol", { class: "timeline" }, timeline.map((each, index) =>
      h("li", { key: index },
        h("span", null, each.name),
        h("span", { class: "track", "aria-hidden": "true" }, h("span", {
          vars: { "--from": Math.max(0, each.at_s - each.took_s) / total, "--part": each.took_s / total },
        })),
        h("span", { class: "figure" }, duration(each.took_s))))));
}

/** @param {Deployment} deployment @param {State} state */
function commandsView({ id }, state) {
  const panel = state.commands[id];
  if (!panel) return null;
  if (panel.error) return h("p", { class: "error" }, panel.error);
  if (!panel.record) return h("p", { class: "hint" }, "Asking the main host…");
  return h("div", { class: "panel" },
    panel.commands.map(({ host, command }, index) => copyable(state, `command-${id}-${index}`, command, `On ${host}`)),
    environmentView(panel.record));
}

/**
 * A command with its copy button.
 * @param {State} state @param {string} key @param {string} text @param {string} label
 */
export function copyable(state, key, text, label) {
  return h("div", { key, class: "copyable" },
    h("div", { class: "copy-head" }, h("span", { id: `${key}-label` }, label),
      h("button", { type: "button", class: "small", "data-action": "copy", "data-key": key, "aria-describedby": `${key}-label` },
        state.copied === key ? "Copied" : "Copy")),
    h("pre", { id: key }, text));
}

/** @param {import("./types.mjs").LaunchRecord} record */
function environmentView(record) {
  const rows = [{ device: "llama-server", environment: record.environment }, ...record.workers].flatMap(
    ({ device, environment }) => Object.entries(environment ?? {}).map((entry) => [device, ...entry]));
  if (!rows.length) return h("p", { class: "hint" }, "No environment variable was set.");
  return h("div", { class: "scroll" }, h("table", null,
    h("caption", null, "Environment"),
    h("thead", null, h("tr", null, ["Process", "Variable", "Value"].map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", null, rows.map((row) => h("tr", null, row.map((cell) => h("td", null, cell)))))));
}

/** llama-server, then each worker of the plan by the name of its device. @param {Deployment} deployment */
export function processes({ plan }) {
  return ["llama-server", ...new Set(plan?.shards.map((shard) => shard.device) ?? [])];
}

/** @param {Deployment} deployment @param {State} state */
function logsView(deployment, state) {
  const { id } = deployment;
  const log = state.logs[id];
  if (!log) return null;
  return h("div", { class: "panel" },
    h("div", { class: "log-head" },
      h("label", null, "Process ", h("select", { "data-action": "log-process", "data-id": id }, processes(deployment).map((name) =>
        h("option", { key: name, value: name, selected: name === log.process }, name)))),
      h("label", { class: "choice" }, h("input", { type: "checkbox", "data-action": "log-follow", "data-id": id, checked: log.follow }), "Follow"),
      h("span", { class: "hint" }, log.file)),
    log.error && h("p", { class: "error" }, log.error),
    h("pre", { class: "log", tabindex: "0", "aria-label": `Log of ${log.process}`, role: "region", "data-follow": log.follow && "true" },
      log.text || (log.file ? "Nothing was logged yet." : "Asking the main host…")));
}
