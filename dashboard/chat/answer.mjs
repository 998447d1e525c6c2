// @ts-check
// What is sent, what comes back, and what is said of it. Pure.
/** @import { Deployment, RequestRecord, Traffic } from "../types.mjs" */
/** @import { Answer, Refusal, Turn } from "./state.mjs" */

import { deploymentName, duration, percent, plural, speed } from "../format.mjs";

export const PATH = "/v1/chat/completions";
const NEAR_MS = 3000; // how far apart the clocks of page and main host may seem to be
const STARTABLE = ["stopped", "stopping", "failed"];

/** All, and whether a request may go there. @param {Record<string, Deployment>} deployments */
export const choices = (deployments) => Object.values(deployments)
  .map((deployment) => ({ deployment, isOpen: Boolean(deployment.spec.on_demand) || !STARTABLE.includes(deployment.state) }));

/**
 * The chosen deployment, else a ready one, else one that may become so.
 * @param {Record<string, Deployment>} deployments @param {string} chosen @returns {Deployment | null}
 */
export function target(deployments, chosen) {
  const open = choices(deployments).filter(({ isOpen }) => isOpen).map(({ deployment }) => deployment);
  return deployments[chosen] ?? open.find(({ state }) => state === "ready") ?? open[0] ?? null;
}

/** The body of a request for the answer to the last turn. @param {Turn[]} turns @param {Record<string, string>} options */
export function requestOf(turns, { system = "", temperature = "", max_tokens = "" }) {
  const last = turns[turns.length - 1];
  const messages = turns.flatMap((turn) => turn === last ? [{ role: "user", content: turn.asked }]
    // Who did not answer was not asked: models want the roles to take turns.
    : turn.answer.text ? [{ role: "user", content: turn.asked }, { role: "assistant", content: turn.answer.text }] : []);
  const amount = (/** @type {string} */ text) => (text.trim() && Number.isFinite(Number(text)) ? Number(text) : undefined);
  return {
    model: last.deployment,
    messages: system.trim() ? [{ role: "system", content: system.trim() }, ...messages] : messages,
    stream: true,
    stream_options: { include_usage: true },
    temperature: amount(temperature),
    max_tokens: amount(max_tokens),
  };
}

/** What one event of the stream brings; null: nothing for us. @param {string} data */
export function pieceOf(data) {
  let told;
  try {
    told = JSON.parse(data);
  } catch {
    return null; // [DONE]
  }
  const choice = told?.choices?.[0];
  return {
    text: String(choice?.delta?.content ?? ""),
    thought: String(choice?.delta?.reasoning_content ?? ""),
    finish: choice?.finish_reason ?? "",
    usage: told?.usage ?? null,
    timings: told?.timings ?? null,
    refusal: told?.error ? refusalOf(told.error) : null,
  };
}

/** @param {any} told in the gateway's shape @param {{status?: number, code?: string}} [more] @returns {Refusal} */
export const refusalOf = (told, { status = 0, code = told?.code } = {}) => ({
  status,
  code: String(code ?? ""),
  detail: String(told?.detail || told?.message || "No reason was given."),
  supervisor: told?.supervisor ?? null,
});

/**
 * Why nothing new is seen, or "".
 * @param {Answer} answer @param {Deployment | undefined} deployment @param {Traffic | undefined} traffic
 */
export function waitWords({ phase, text, thought }, deployment, traffic) {
  const hasBegun = Boolean(text || thought);
  if ((phase !== "waiting" && phase !== "answering") || !deployment) return "";
  const name = deploymentName(deployment);
  if (deployment.state !== "ready") {
    const sum = (/** @type {"weight_bytes" | "loaded_bytes"} */ what) =>
      deployment.loads.reduce((all, load) => all + load[what], 0);
    const share = sum("weight_bytes") ? ` (${percent(sum("loaded_bytes"), sum("weight_bytes"))} %)` : "";
    return hasBegun ? `Goes on when ${name} is ready again${share}.` : `Waits until ${name} is ready${share}.`;
  }
  if (hasBegun) return "";
  const { active = 0, slots = 1, waiting = 0 } = traffic ?? {};
  if (!waiting || active < slots) return "Reads the prompt…";
  return `Waits for a free slot of ${name}; ${plural(waiting, "request")} wait${waiting === 1 ? "s" : ""}.`;
}

/**
 * The main host's record of this answer, as well as it can be found.
 * @param {Turn} turn @param {RequestRecord[]} requests @param {number} skew_ms from our clock to the main host's
 */
export function recordOf({ deployment, answer }, requests, skew_ms) {
  const apart_ms = (/** @type {RequestRecord} */ record) => Math.abs(Date.parse(record.at) - answer.sent_ms - skew_ms);
  return requests
    .filter((record) => record.path === PATH && record.is_stream && record.deployment === deployment)
    .filter((record) => apart_ms(record) < NEAR_MS)
    .sort((a, b) => apart_ms(a) - apart_ms(b))[0] ?? null;
}

/** The numbers of an answer, in words. @param {Answer} answer @param {RequestRecord | null} record */
export function numbers({ phase, finish, sent_ms, first_ms, ended_ms, usage, timings }, record) {
  if (ended_ms === null) return [];
  const { prompt_tokens, completion_tokens: tokens } = usage ?? {};
  // After a loss, llama-server's own figure is about the last part only.
  const own = timings?.predicted_n === tokens ? timings?.predicted_per_second : undefined;
  const writing_s = first_ms === null ? 0 : (ended_ms - first_ms) / 1000;
  const rate = own ?? (tokens && tokens > 1 && writing_s > 0 ? (tokens - 1) / writing_s : undefined);
  const kept = timings?.cache_n ? `, ${timings.cache_n} of them kept from before` : "";
  return [
    first_ms !== null && `first token after ${duration((first_ms - sent_ms) / 1000)}`,
    rate !== undefined && speed(rate),
    tokens !== undefined && plural(tokens, "token"),
    prompt_tokens !== undefined && `${plural(prompt_tokens, "prompt token")}${kept}`,
    record?.resumed && `continued after a worker was lost${record.resumed > 1 ? `, ${record.resumed} times` : ""}`,
    phase === "stopped" && "stopped by you",
    finish === "length" && "cut off at the most tokens that were allowed",
  ].filter(Boolean);
}
