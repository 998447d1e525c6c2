// @ts-check
// What there is to say about a deployment: its story when it breaks, its phases, its loads, its time. Pure.
/** @import { Deployment, Device, Plan, RequestRecord, State, TokenTime, Traffic } from "../types.mjs" */

import { age, bytes, duration, plural, secondsSince, sentence } from "../format.mjs";
import { colour, places } from "../plan_view.mjs";

/** What a state means, for when the main host gave no reason. @type {Record<string, string>} */
const MEANINGS = {
  pending: "A plan is being made.",
  fetching: "The model is being fetched.",
  starting: "It is being launched.",
  ready: "It answers requests.",
  degraded: "Its processes live, but it does not answer as it should.",
  backoff: "The last launch ended; another one is due.",
  stopping: "Its running requests end first, then its processes. “Stop now” ends them at once.",
  stopped: "Nothing runs, as you asked.",
  failed: "Nothing runs.",
};

/** Of a launch: name, label, what happens, the milestone that ends it. */
const PHASES = [
  ["plan", "Plan", "Placing the layers.", "planned"],
  ["fetch", "Fetch", "Fetching the model from the hub.", "fetched"],
  ["workers", "Workers", "Starting the workers.", "workers ready"],
  ["verify", "Verify", "Checking every worker from the main host.", "verified"],
  ["connect", "Connect", "llama-server connects to its workers.", "connected"],
  ["load", "Load", "Loading the weights.", "loaded"],
  ["first token", "First token", "Waiting for the first token.", "first token"],
];

/** What the next launch does differently, by the action of the cause. @type {Record<string, (device: string) => string>} */
const NEXT = {
  "retry": () => "It is planned for the devices that are there then, and launched again by itself.",
  "smaller ubatch": () => "It is launched again by itself, with fewer tokens computed at once.",
  "smaller share": (device) => `It is launched again by itself, with a smaller share on ${device}.`,
  "exclude": (device) => `It is launched again by itself, without ${device}.`,
};
/** Causes that one more device may end; the main host looks by itself then. */
const WANTS_MORE = ["no_devices", "insufficient_memory", "worker_incompatible"];
const SLOW_FACTOR = 1.5; // more of a token's time than this times the plan's is worth pointing at
const SLOW_MS = 1;

/** @param {Deployment} deployment */
export const isOver = ({ state }) => state === "stopped" || state === "failed";

/** @param {Deployment} deployment */
export const isLaunching = ({ state }) => ["pending", "fetching", "starting"].includes(state);

/** The deployment that is looked at, or "": the one in the address, or the only one. @param {State} state */
export function shownId({ route, deployments }) {
  if (route.view !== "deployments") return "";
  if (route.parts.length) return route.parts[0];
  const ids = Object.keys(deployments);
  return ids.length === 1 ? ids[0] : "";
}

/** @param {Deployment} deployment @param {number} now_ms */
export function stateWords(deployment, now_ms) {
  const seconds = secondsSince(deployment.since, now_ms);
  if (seconds === null) return deployment.state;
  return isOver(deployment) ? `${deployment.state} ${age(seconds)} ago` : `${deployment.state} for ${age(seconds)}`;
}

/** One line: why it is as it is. @param {Deployment} deployment */
export function reasonLine({ state, slow, reason, cause, phase }) {
  const meaning = (state === "starting" && PHASES.find(([name]) => name === phase)?.[2]) || MEANINGS[state] || state;
  const why = state.startsWith("stopp") ? null : cause; // it was stopped for no such reason
  return sentence((state === "ready" && slow) || why?.sentence || reason || meaning, cause?.device);
}

/** Where its layers are, in the order of the plan. @param {Deployment} deployment */
export function devicesOf({ plan, spec }) {
  if (!plan) return spec.devices;
  const own = plan.host.layers > 0 || !plan.shards.length ? ["Main host"] : [];
  return [...own, ...new Set(plan.shards.map(({ device }) => device))];
}

/** The class that colours a device or process, as in the picture of the plan. @param {Plan | null} plan @param {string} name */
export function hueOf(plan, name) {
  if (name === "link") return "link-hue";
  const index = plan ? places(plan).findIndex((place) => place.name === name) : -1;
  return index < 0 ? "host-hue" : colour(index);
}

/** @param {number} count */
export const waitWords = (count) => `${plural(count, "request")} ${count === 1 ? "waits" : "wait"} for it.`;

/** What to do. What the repair would do by itself, it does at the next start where it has given up. @param {Deployment} deployment */
function remedyWords({ state, cause }) {
  const remedy = cause?.remedy ?? "";
  return sentence(state === "failed" && remedy.startsWith("its ") ? `at the next start, ${remedy}` : remedy);
}

/**
 * What broke, why, and what happens now; null when nothing did.
 * @param {Deployment} deployment @param {Record<string, Device>} devices @param {number} now_ms
 */
export function story(deployment, devices, now_ms) {
  const { state, cause, slow, reason, failures, since, retry_at, error_code } = deployment;
  const isSlow = state === "ready" && slow !== "";
  const isAgain = isLaunching(deployment) && (failures > 0 || cause !== null);
  const hasFailed = isAgain || ["backoff", "failed", "degraded"].includes(state);
  if (!isSlow && !hasFailed) return null;
  const wait_s = state === "backoff" ? Math.max(0, -(secondsSince(retry_at, now_ms) ?? 0)) : 0;
  const pause_s = wait_s && (secondsSince(since, Date.parse(retry_at)) ?? wait_s);
  const device = devices[cause?.agent_id ?? ""];
  return {
    tone: state === "failed" ? "bad" : "warn",
    title: isSlow ? "It is slower than usual" : state === "failed" ? "It failed" : "What happened",
    what: isSlow ? sentence(slow) : reasonLine(deployment),
    // The reason says more than the cause where it is about a later moment.
    also: cause && reason && !reason.includes(cause.sentence) ? sentence(reason, cause.device) : "",
    now: nowWords(deployment),
    countdown: state !== "backoff" ? "" : wait_s > 0 ? `next launch in ${age(Math.ceil(wait_s))}` : "the next launch begins",
    left: pause_s > 0 ? Math.min(1, wait_s / pause_s) : 0,
    remedy: isSlow ? "Look below at which device takes longer than planned; close other programs there, or look at its link."
      : remedyWords(deployment),
    evidence: isSlow ? [] : cause?.evidence ?? [],
    device: device ? { id: device.id, name: device.name, state: device.state } : null,
    failures: failures > 0 ? `${plural(failures, "failure")} in a row` : "",
    code: isSlow ? "deployment_slow" : cause?.code || error_code,
  };
}

/** What the system does about it. @param {Deployment} deployment */
function nowWords(deployment) {
  const { state, cause, failures } = deployment;
  const hasWish = WANTS_MORE.includes(cause?.code ?? "");
  if (state === "ready") return "It goes on answering.";
  if (state === "failed") {
    return hasWish ? "Nothing runs. It is launched again by itself as soon as a device is there that makes it possible."
      : "Nothing runs, and nothing more happens by itself. Once it is mended, press Start.";
  }
  if (state === "degraded") return "New requests wait. It is either as before in a moment, or launched again by itself.";
  if (state === "backoff") return (NEXT[cause?.action ?? ""] ?? NEXT.retry)(cause?.device || "that device");
  if (state === "pending") return "It is planned again as soon as a device comes, goes or changes, and now and then anyway.";
  return `It is being launched again${failures > 0 ? `, attempt ${failures + 1}` : ""}.`;
}

/**
 * The phases of the present launch, with seconds so far for those that began.
 * @param {Deployment} deployment @param {number} now_ms
 */
export function phases({ state, phase, plan, timeline, since, pull }, now_ms) {
  const isAlone = plan !== null && plan.shards.length === 0;
  const left = [!pull && "fetch", isAlone && "workers", isAlone && "verify"];
  const list = PHASES.filter(([name]) => !left.includes(name));
  const now = state === "starting" ? phase.replaceAll("_", " ") : state === "fetching" && pull ? "fetch" : list[0][0];
  const current = list.findIndex(([name]) => name === now);
  // A launch enters "starting" at its first milestone; `since` tells when that was.
  const begun_s = (timeline.at(-1)?.at_s ?? 0) - (timeline[0]?.at_s ?? 0);
  const running_s = Math.max(0, (secondsSince(since, now_ms) ?? 0) - (state === "starting" ? begun_s : 0));
  return list.map(([name, label, what, milestone], index) => {
    const done_s = state === "starting" ? timeline.find((each) => each.name === milestone)?.took_s : undefined;
    return { name, label, what, isDone: index < current, isCurrent: index === current,
      took_s: index < current ? done_s ?? null : index === current ? running_s : null };
  });
}

/** One row per worker: what is there, what is still to come, and how fast. @param {Deployment} deployment */
export function loadRows({ loads, links }) {
  return loads.map(({ device, weight_bytes, loaded_bytes }) => {
    const link = links.find((each) => each.device === device);
    const loaded = Math.min(loaded_bytes, weight_bytes);
    const left_bytes = link?.remaining_bytes || weight_bytes - loaded;
    return { device, weight_bytes, loaded_bytes: loaded, left_bytes, saved_bytes: link?.saved_bytes ?? 0,
      bytes_per_s: left_bytes > 0 ? link?.bytes_per_s ?? 0 : 0, eta_s: link?.eta_s ?? null };
  });
}

/** All workers together. They load side by side, so the slowest decides. @param {ReturnType<typeof loadRows>} rows */
export function loadTotal(rows) {
  const sum = (/** @type {"weight_bytes" | "loaded_bytes" | "left_bytes" | "bytes_per_s"} */ name) =>
    rows.reduce((total, row) => total + row[name], 0);
  const rate = sum("bytes_per_s");
  const etas = rows.map(({ eta_s }) => eta_s ?? 0);
  const eta_s = rate > 0 ? Math.max(sum("left_bytes") / rate, ...etas) : Math.max(...etas, 0) || null;
  return { weight_bytes: sum("weight_bytes"), loaded_bytes: sum("loaded_bytes"), bytes_per_s: rate, eta_s };
}

/** @param {{weight_bytes: number, loaded_bytes: number, bytes_per_s: number, eta_s: number | null, saved_bytes?: number}} row */
export function loadWords({ weight_bytes, loaded_bytes, bytes_per_s, eta_s, saved_bytes = 0 }) {
  const isWhole = loaded_bytes >= weight_bytes;
  return [
    isWhole ? `${bytes(weight_bytes)}, all there` : `${bytes(loaded_bytes)} of ${bytes(weight_bytes)}`,
    !isWhole && bytes_per_s > 0 && `${bytes(bytes_per_s)}/s`,
    !isWhole && eta_s !== null && `${duration(eta_s)} left`,
    saved_bytes > 0 && `${bytes(saved_bytes)} were there already`,
  ].filter(Boolean).join(" · ");
}

/**
 * Where the time of one token goes, beside what the plan expected; the main host first.
 * @param {TokenTime} token_time @param {Plan | null} plan
 */
export function timeRows({ host_ms, workers }, plan) {
  const rows = [{ device: "Main host", compute_ms: host_ms, wire_ms: 0 }, ...workers];
  return rows.map((row, index) => {
    const expected = expectedOf(plan, index === 0 ? "" : row.device);
    const more_ms = expected ? row.compute_ms + row.wire_ms - expected.compute_ms - expected.wire_ms : 0;
    const factor = expected && (row.compute_ms + row.wire_ms) / Math.max(expected.compute_ms + expected.wire_ms, 0.01);
    const isWire = expected !== null && row.wire_ms - expected.wire_ms > more_ms / 2;
    return { ...row, expected, factor, isWire, isSlow: factor !== null && factor > SLOW_FACTOR && more_ms > SLOW_MS };
  });
}

/** Milliseconds of one token; a plan for several users counts a token of each. @param {Plan | null} plan @param {string} device */
function expectedOf(plan, device) {
  const prediction = plan?.prediction;
  if (!plan || !prediction) return null;
  const last = plan.host.has_output ? "" : plan.shards.at(-1)?.device ?? "";
  const stages = prediction.stages.filter((stage) => (stage.device === "main host" ? "" : stage.device.split("/")[0]) === device);
  const output_s = last === device ? prediction.output_s : 0;
  if (!stages.length && !output_s) return null;
  const ms = 1000 / Math.max(1, prediction.users);
  const sum = (/** @type {"compute_s" | "network_s"} */ name) => stages.reduce((total, stage) => total + stage[name], 0);
  return { compute_ms: (sum("compute_s") + output_s) * ms, wire_ms: sum("network_s") * ms };
}

/** Newest first. @param {State} state @param {string} id */
export const requestsOf = ({ requests }, id) => requests.filter((request) => request.deployment === id);

/** In seconds, of those that streamed an answer. @param {RequestRecord[]} requests */
export function medianFirstToken(requests) {
  const known = requests.flatMap(({ first_token_s }) => (first_token_s === null ? [] : [first_token_s])).sort((a, b) => a - b);
  if (!known.length) return null;
  const middle = known.length >> 1;
  return known.length % 2 ? known[middle] : (known[middle - 1] + known[middle]) / 2;
}

/** A line for a shell that asks it something. @param {string} url @param {string} model */
export const curlLine = (url, model) => `curl ${url}/v1/chat/completions \\
  -H 'Content-Type: application/json' \\
  -H "Authorization: Bearer $KEY" \\
  -d '${JSON.stringify({ model, messages: [{ role: "user", content: "Hello" }] })}'`;

/** Milliseconds of one token, in all places together. @param {TokenTime} time */
export const wholeTime = ({ host_ms, workers }) => workers.reduce((sum, { compute_ms, wire_ms }) => sum + compute_ms + wire_ms, host_ms);

/**
 * How fast tokens come; llama-server itself tells only of answers that have ended.
 * @param {Deployment} deployment @param {Traffic | undefined} traffic @returns {{value: number | null, when: string}}
 */
export function speedNow({ state, tokens_per_second, token_time }, traffic) {
  const isBusy = state === "ready" && (traffic?.active ?? 0) > 0;
  const whole_ms = isBusy && token_time ? wholeTime(token_time) : 0;
  if (whole_ms > 0) return { value: 1000 / whole_ms, when: "now" };
  if (tokens_per_second !== null) return { value: tokens_per_second, when: "in the last answer" };
  return { value: null, when: isBusy ? "not known yet" : "no answer yet" };
}
