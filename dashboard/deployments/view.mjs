// @ts-check
// Deployments: all of them as a list, and one of them from what was asked to what runs and why.
/** @import { Deployment, Device, Plan, Pull, RequestRecord, State } from "../types.mjs" */
/** @import { Own } from "./state.mjs" */

import { h, memo } from "../dom.mjs";
import { bytes, deploymentName, duration, plural, secondsSince, speed } from "../format.mjs";
import { badge, copyable, errorText, tone, viewHead } from "../parts.mjs";
import { planView } from "../plan_view.mjs";
import { pullBar, pullProblem, pullTitle } from "../pull_view.mjs";
import { address } from "../routes.mjs";
import { ask } from "../state.mjs";
import * as facts from "./facts.mjs";
import { logView } from "./log_view.mjs";
import { linksView, loadsView, runningView, stepsView, storyView, timelineView } from "./sections.mjs";

const STOP_IS_LONG_S = 5;
const REQUESTS_SHOWN = 10;

/** @param {State} state @param {number} now_ms */
export function deploymentsView(state, now_ms) {
  const id = facts.shownId(state);
  if (state.deployments[id]) return deploymentView(state.deployments[id], state, now_ms);
  const isEmpty = !Object.keys(state.deployments).length;
  return [
    viewHead("Deployments", !isEmpty && h("a", { class: "button", href: address("launch") }, "Launch another")),
    !state.host ? h("p", { class: "empty" }, "Waiting for the main host.")
      : !id ? listView(state, now_ms)
        : h("p", { class: "empty" }, `There is no deployment “${id}”. `, h("a", { href: address("deployments") }, "All deployments")),
  ];
}

/** @param {State} state @param {number} now_ms */
function listView(state, now_ms) {
  const all = Object.values(state.deployments);
  if (all.length) return h("ul", { class: "deployments" }, all.map((each) => rowView(each, state, now_ms)));
  const hasDevice = Object.values(state.devices).some((device) => device.state === "ready");
  return h("div", { class: "empty" },
    h("p", null, hasDevice ? "Nothing is deployed. Choose a model, look at its plan, and launch it."
      : "Nothing is deployed, and no device is ready. Add one first; small models run on the main host alone, too."),
    h("p", { class: "row start" }, !hasDevice && [h("a", { class: "button primary", href: address("devices") }, "Add a device")],
      h("a", { class: `button ${hasDevice ? "primary" : ""}`, href: address("launch") }, "Launch a model")));
}

/** @param {Deployment} deployment @param {State} state @param {number} now_ms */
function rowView(deployment, state, now_ms) {
  const { id, tokens_per_second } = deployment;
  const traffic = state.traffic[id];
  const isReady = deployment.state === "ready";
  return h("li", { key: id, class: "card" },
    h("div", { class: "row" },
      h("h3", null, h("a", { href: address("deployments", id) }, deploymentName(deployment))),
      badge(deployment.state, facts.stateWords(deployment, now_ms))),
    (!isReady || deployment.slow) &&
      h("p", { class: `reason ${tone(isReady ? "degraded" : deployment.state)}` }, facts.reasonLine(deployment)),
    h("p", { class: "hint" }, [
      tokens_per_second != null && isReady && speed(tokens_per_second),
      traffic && `${traffic.active} of ${traffic.slots} slots busy`,
      traffic?.waiting > 0 && `${traffic.waiting} waiting`,
      facts.devicesOf(deployment).join(", "),
    ].filter(Boolean).join(" · ")));
}

/** @param {Deployment} deployment @param {State} state @param {number} now_ms */
function deploymentView(deployment, state, now_ms) {
  const { id, plan, launch_id, links, timeline } = deployment;
  const isServing = deployment.state === "ready" || deployment.state === "degraded";
  const own = /** @type {Own} */ (state.views.deployments);
  const told = facts.story(deployment, state.devices, now_ms);
  const requests = facts.requestsOf(state, id);
  return h("article", { key: id, class: "deployment", "aria-labelledby": "deployment" },
    headView(deployment, state, now_ms, told !== null),
    told && storyView(told, state.traffic[id]),
    facts.isLaunching(deployment) && h("section", { key: "starting", class: "card", "aria-label": "This launch" },
      stepsView(deployment, now_ms), deployment.state === "fetching" && deployment.pull && pullView(deployment.pull), deployment.loads.length > 0 && loadsView(deployment), waiting(state, id)),
    isServing && runningView(deployment, own.history[id]?.readings ?? [], requests, state.traffic[id]),
    h("div", { key: "about", class: "pair" },
      plan && h("div", { key: "plan", class: "stack" },
        memo("plan", [plan, plan.shards.map((shard) => state.devices[shard.agent_id]?.state).join()],
          () => planCard(plan, state.devices)),
        isServing && links.length > 0 && linksView(links)),
      !facts.isLaunching(deployment) && h("div", { key: "side", class: "stack" },
        isServing && useView(deployment, state),
        timeline.length > 0 && timelineView(timeline, isServing))),
    requests.length > 0 && memo("requests", [requests.length, requests[0]], () => requestsView(requests.slice(0, REQUESTS_SHOWN))),
    launch_id !== null && [
      panel("commands", "Exact commands", own.isCommandsOpen && commandsView(launch_id, own, state)),
      panel("logs", "Logs", own.log && logView(own.log, deployment, state)),
    ],
    confirmView(deployment, own));
}

/** Short, until more is asked for. @param {Plan} plan @param {Record<string, Device>} devices */
const planCard = (plan, devices) => h("div", { class: "card deployment-plan" },
  h("h3", null, "Plan"),
  planView(plan, { devices, isCompact: true }),
  h("details", null, h("summary", null, "Memory, reasons, and what was left out"), planView(plan, { devices })));

/** What it waits for. @param {Pull} pull */
const pullView = (pull) => h("div", { key: "pull" },
  h("p", { class: "row" }, h("strong", null, pullTitle(pull)), h("a", { href: address("models") }, pull.state === "paused" ? "Paused: go on in Models" : "All pulls")),
  pullBar(pull), pullProblem(pull));

/** @param {State} state @param {string} id */
function waiting({ traffic }, id) {
  const count = traffic[id]?.waiting ?? 0;
  return count > 0 && h("p", null, `${facts.waitWords(count)} They are answered when it is ready.`);
}

/** @param {string} name @param {string} label @param {any} content */
const panel = (name, label, content) =>
  h("details", { key: name, class: "card", open: Boolean(content), "data-toggle": `deployments/${name}` },
    h("summary", null, h("h3", null, label)), content);

/** @param {Deployment} deployment @param {State} state @param {number} now_ms @param {boolean} isTold the reason stands below */
function headView(deployment, state, now_ms, isTold) {
  const { id, plan, spec, launch_id } = deployment;
  const isOnly = Object.keys(state.deployments).length === 1;
  return h("header", { key: "head" },
    !isOnly && h("a", { class: "small-words", href: address("deployments") }, "All deployments"),
    h("div", { class: "row" },
      h("h2", { id: "deployment", tabindex: -1 }, deploymentName(deployment)),
      badge(deployment.state, facts.stateWords(deployment, now_ms)),
      actionsView(deployment, state, now_ms)),
    errorText(state, `deployment ${id}`),
    h("p", { class: "hint" }, plan ? `${plan.model.name} · ${bytes(plan.model.size_bytes)} · ` : `${spec.model} · `,
      `context ${(plan?.ctx_tokens ?? spec.ctx_tokens).toLocaleString("en")} tokens · ${plural(spec.slots, "slot")}`,
      launch_id !== null && [" · ", h("a", { href: address("records", launch_id) }, `launch ${launch_id}`)]),
    !isTold && !facts.isLaunching(deployment) && deployment.state !== "ready" && h("p", null, facts.reasonLine(deployment)),
    deployment.warnings.map((text) => h("p", { key: text, class: "message warn" }, text)));
}

/** @param {Deployment} deployment @param {State} state @param {number} now_ms */
function actionsView(deployment, state, now_ms) {
  const { id } = deployment;
  const { busy } = ask(state, `deployment ${id}`);
  const button = (/** @type {string} */ name, /** @type {string} */ label, kind = "") =>
    h("button", { key: name, type: "button", class: kind, "data-action": `deployments/${name}`, "data-id": id, disabled: busy }, label);
  const edit = h("a", { key: "edit", class: "button", href: address("launch", id) }, "Edit");
  const isLong = (secondsSince(deployment.since, now_ms) ?? 0) >= STOP_IS_LONG_S;
  return h("div", { class: "actions" },
    facts.isOver(deployment) ? [button("start", "Start", "start"), edit, button("ask-remove", "Remove", "danger")]
    : deployment.state === "stopping" ? isLong && button("stop-now", "Stop now", "danger")
    : [button("relaunch", deployment.state === "backoff" ? "Launch now" : "Relaunch"), edit, button("stop", "Stop")]);
}

/** @param {Deployment} deployment @param {Own} own */
function confirmView(deployment, own) {
  const { id } = deployment;
  if (own.confirm !== id) return null;
  return h("dialog", { key: "confirm", "data-modal": true, "data-close": "deployments/keep", "aria-labelledby": "confirm-title" },
    h("h3", { id: "confirm-title" }, `Remove ${deploymentName(deployment)}?`),
    h("p", null, "What was asked for is forgotten. The model, the launch records and the logs stay."),
    h("div", { class: "actions" },
      h("button", { type: "button", "data-action": "deployments/keep", "data-autofocus": true }, "Keep it"),
      h("button", { type: "button", class: "danger", "data-action": "deployments/remove", "data-id": id }, "Remove")));
}

/** @param {Deployment} deployment @param {State} state */
function useView({ id }, state) {
  const url = state.host?.url ?? "";
  return h("section", { key: "use", class: "card", "aria-labelledby": "use-title" },
    h("h3", { id: "use-title" }, "Use it"),
    h("p", { class: "hint" }, h("a", { href: address("chat", id) }, "Chat with it"),
      ", or give its address and name to any program that speaks the OpenAI API."),
    copyable(state, "use-url", "Address", `${url}/v1`),
    copyable(state, "use-name", "Model", id),
    copyable(state, "use-curl", "In a shell", facts.curlLine(url, id)),
    h("p", { class: "hint" }, "From other hosts it needs a key: ", h("a", { href: address("settings") }, "make one"), "."));
}

/** @param {number} launch_id @param {Own} own @param {State} state */
function commandsView(launch_id, { commands: held }, state) {
  const key = `commands ${launch_id}`;
  if (held?.launch !== launch_id) return errorText(state, key) || h("p", { class: "hint" }, "Asking the main host…");
  const { environment, workers } = held.record;
  const rows = [{ device: "llama-server", environment }, ...workers].flatMap((process) =>
    Object.entries(process.environment).map((entry) => [process.device, ...entry]));
  return h("div", { class: "stack" },
    h("p", { class: "hint" }, "They repeat this launch by hand, workers first, without the links: in a network that you trust only."),
    held.commands.map(({ host, command }, index) => copyable(state, `command-${index}`, `On ${host}`, command)),
    rows.length > 0 && tableView("Environment", ["Process", "Variable", "Value"], rows));
}

/** @param {RequestRecord[]} requests */
function requestsView(requests) {
  const seconds = (/** @type {number | null} */ value) => (value === null ? "–" : duration(value));
  const rows = requests.map((r) => [
    new Date(r.at).toLocaleTimeString("en-GB"),
    r.path,
    r.caller,
    r.code ? `${r.status} ${r.code}` : r.status === 499 ? "499 client left" : r.status,
    seconds(r.queue_s),
    seconds(r.first_token_s),
    r.tokens_per_s?.toFixed(1) ?? "–",
    `${r.prompt_tokens ?? "–"} → ${r.generated_tokens ?? "–"}`,
    [r.resumed > 0 && `resumed ${r.resumed}×`, r.retries > 0 && `begun again ${r.retries}×`].filter(Boolean).join(", "),
  ]);
  return h("div", { class: "card" },
    h("h3", null, "Recent requests"),
    tableView("", ["Time", "Path", "Caller", "Status", "Waited", "First token", "Tokens/s", "Prompt → answer", "Mended"], rows));
}

/** @param {string} caption @param {string[]} names @param {any[][]} rows */
const tableView = (caption, names, rows) =>
  h("div", { class: "wide-table", tabindex: 0, role: "region", "aria-label": caption || "Recent requests" },
    h("table", null,
      caption && h("caption", null, caption),
      h("thead", null, h("tr", null, names.map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", null, rows.map((row) => h("tr", null, row.map((cell) => h("td", null, cell)))))));
