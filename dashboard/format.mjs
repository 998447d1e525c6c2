// @ts-check
// Values as words. Pure; the clock is an argument.
/** @import { Deployment, Engine, Facts, Link } from "./types.mjs" */

const MIB = 1024 ** 2;
const GIB = 1024 ** 3;
const UNKNOWN = "unknown";

/** @param {unknown} value @returns {value is number} */
const isNumber = (value) => Number.isFinite(value);

/** @param {number | null | undefined} count */
export function bytes(count) {
  if (!isNumber(count)) return UNKNOWN;
  // The unit changes where the rounded figure would reach 1024 of the smaller one.
  if (count >= 1023.5 * MIB) return `${(count / GIB).toFixed(1)} GiB`;
  return count > 0 && count < MIB / 2 ? "under 1 MiB" : `${Math.round(count / MIB)} MiB`;
}

/** Of a network, as networks are sold. @param {number | null | undefined} bytes_per_s */
export function bitRate(bytes_per_s) {
  if (!isNumber(bytes_per_s)) return UNKNOWN;
  const mbit = bytes_per_s * 8e-6;
  if (mbit >= 999.5) return `${(mbit / 1000).toFixed(1)} Gbit/s`;
  return mbit >= 9.95 ? `${Math.round(mbit)} Mbit/s` : `${mbit.toFixed(1)} Mbit/s`;
}

/** How long something took. @param {number | null | undefined} seconds */
export function duration(seconds) {
  if (!isNumber(seconds)) return UNKNOWN;
  const positive = Math.max(0, seconds);
  if (positive < 0.9995) return `${Math.round(positive * 1000)} ms`;
  if (positive < 9.95) return `${positive.toFixed(1)} s`;
  const whole = Math.round(positive);
  if (whole < 60) return `${whole} s`;
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return `${minutes} min ${whole % 60} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** One unit is enough to say how old something is. @param {number | null | undefined} seconds */
export function age(seconds) {
  if (!isNumber(seconds)) return UNKNOWN;
  const whole = Math.max(0, Math.floor(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min`;
  if (whole < 86_400) return `${Math.floor(whole / 3600)} h`;
  return plural(Math.floor(whole / 86_400), "day");
}

/**
 * Seconds from an ISO time to `now_ms`; negative if it lies ahead, null if it is no time.
 * @param {string | null | undefined} iso @param {number} now_ms
 */
export function secondsSince(iso, now_ms) {
  const then_ms = Date.parse(iso ?? "");
  return Number.isNaN(then_ms) ? null : (now_ms - then_ms) / 1000;
}

/** @param {number} count @param {string} noun */
export const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

/** Whole percent, within 0 and 100. @param {number} part @param {number} whole */
export function percent(part, whole) {
  return whole > 0 ? Math.min(100, Math.max(0, Math.floor((part / whole) * 100))) : 0;
}

/** @param {number} value */
export const milliseconds = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;

/** @param {number} tokens_per_second */
export const speed = (tokens_per_second) => `${tokens_per_second.toFixed(1)} tokens/s`;

/**
 * One link in words: what comes over it while weights load, and what it costs afterwards.
 * @param {Link} link
 */
export function linkWords(link) {
  const parts = [];
  if (link.remaining_bytes > 0 && link.bytes_per_s > 0) parts.push(`${bytes(link.bytes_per_s)}/s`);
  if (link.remaining_bytes > 0 && link.eta_s !== null) parts.push(`${duration(link.eta_s)} left`);
  if (link.saved_bytes > 0) parts.push(`${bytes(link.saved_bytes)} were there already`);
  if (link.round_trip_ms !== null) parts.push(`round trip ${milliseconds(link.round_trip_ms)}`);
  if (link.wire_share !== null) parts.push(`${Math.round(link.wire_share * 100)} % of its time on the wire`);
  return parts.join(" · ");
}

/** @param {Engine | null | undefined} engine */
export const engineWords = (engine) =>
  (engine ? [buildWords(engine), engine.variant, engine.rpc_protocol && `RPC ${engine.rpc_protocol}`].filter(Boolean).join(" · ") : "none");

/** The release with its commit, as far as they are known. @param {Engine} engine */
function buildWords({ release, build, version }) {
  if (release && build && release !== build) return `${release} (${build})`;
  return release || build || version || "unknown build";
}

/** @type {Record<string, string>} */
const PLATFORMS = { linux: "Linux", macos: "macOS", android: "Android" };

/** @param {string} platform */
export const platformName = (platform) => PLATFORMS[platform] ?? platform;

/** What to call a deployment: its name, else its model's file name. @param {Pick<Deployment, "spec">} deployment */
export function deploymentName({ spec }) {
  return spec.name || spec.model.split("/").pop()?.replace(/\.gguf$/i, "") || spec.model;
}

/**
 * How a host's memory is divided. The parts always sum to the total.
 * @param {Facts} facts @param {number | null | undefined} resident_bytes
 */
export function memoryParts(facts, resident_bytes) {
  const total = Math.max(0, facts.memory_total_bytes);
  const free = Math.min(total, Math.max(0, facts.memory_available_bytes));
  const ours = Math.min(total - free, Math.max(0, resident_bytes ?? 0));
  return { total, free, ours, others: total - free - ours };
}

/** Numbers as a person types them, "12, 12 9"; null if it is no such list. @param {string} text */
export function parseSplit(text) {
  const parts = text.split(/[\s,;]+/).filter(Boolean);
  return parts.every((part) => /^\d+$/.test(part)) ? parts.map(Number) : null;
}

/** A text of the main host as a sentence; names keep their first letter. @param {string} text @param {string} [name] */
export function sentence(text, name) {
  const first = text.split(/[\s,;:]/)[0];
  const isWord = /^[a-z]+$/.test(first) && first !== name && !(name && text.startsWith(name));
  const begun = isWord ? text[0].toUpperCase() + text.slice(1) : text;
  return begun && begun.replace(/[^.!?:…”]$/, "$&.");
}
