// @ts-check
// Launch records as rows of words, and two of them side by side. Pure.
/** @import { LaunchRecord, Plan } from "../types.mjs" */

import { bytes, duration, milliseconds, plural, speed } from "../format.mjs";

/**
 * @typedef {[name: string, text: string, amount?: number]} Row `amount`: what a ratio is made of
 * @typedef {{title: string, rows: Row[]}} Section
 * @typedef {{name: string, left: string | null, right: string | null, ratio: number | null, isSame: boolean}} Pair null: not there
 */

/**
 * Options of a command in their order, each with its values; one that comes again has a number.
 * @param {string[]} argv @returns {Row[]}
 */
export function argumentsOf([program = "", ...words]) {
  /** @type {[string, string[]][]} */
  const options = [];
  for (const word of words) {
    const isOption = /^-{1,2}[a-z]/i.test(word);
    if (isOption || !options.length) options.push([isOption ? word : "(first)", isOption ? [] : [word]]);
    else options[options.length - 1][1].push(word);
  }
  /** @type {Record<string, number>} */
  const counts = {};
  return [["program", program], ...options.map(([name, values]) => {
    counts[name] = (counts[name] ?? 0) + 1;
    return /** @type {Row} */ ([counts[name] > 1 ? `${name} (${counts[name]})` : name, values.join(" ")]);
  })];
}

/**
 * Rows of both by their names: in the order of the left, with what only the right has after what it follows there.
 * @param {Row[]} left @param {Row[]} right @returns {Pair[]}
 */
export function paired(left, right) {
  const [ours, theirs] = [left, right].map((rows) => new Map(rows.map((row) => [row[0], row])));
  const names = left.map(([name]) => name);
  right.forEach(([name], index) => {
    if (!ours.has(name)) names.splice(index ? names.indexOf(right[index - 1][0]) + 1 : 0, 0, name);
  });
  return names.map((name) => {
    const [a, b] = [ours.get(name), theirs.get(name)];
    const ratio = a?.[2] && b?.[2] ? b[2] / a[2] : null;
    return { name, left: a?.[1] ?? null, right: b?.[1] ?? null, ratio, isSame: a?.[1] === b?.[1] };
  });
}

/** @param {LaunchRecord} left @param {LaunchRecord} right @returns {{title: string, rows: Pair[]}[]} */
export function compared(left, right) {
  const [ours, theirs] = [left, right].map(sectionsOf);
  const titles = paired(ours.map(({ title }) => [title, ""]), theirs.map(({ title }) => [title, ""])).map(({ name }) => name);
  const rowsOf = (/** @type {Section[]} */ all, /** @type {string} */ title) =>
    all.find((section) => section.title === title)?.rows ?? [];
  return titles.map((title) => ({ title, rows: paired(rowsOf(ours, title), rowsOf(theirs, title)) }));
}

/** All that a comparison shows of a launch. @param {LaunchRecord} record @returns {Section[]} */
export function sectionsOf(record) {
  const { plan, engine, workers, timeline, memory, links } = record;
  return [
    { title: "Launch", rows: [
      ["deployment", record.deployment], ["outcome", record.outcome], ["cause", record.cause?.sentence ?? record.reason],
      ["main host", record.main_host], ["engine", `${engine.version} (${engine.build})`],
      ["ready after", readyText(record), readyAfter(record) ?? 0],
    ] },
    { title: "Time of each phase", rows: timeline.map(({ name, took_s }) => [name, duration(took_s), took_s]) },
    { title: "Plan", rows: planRows(plan) },
    { title: "Layers and memory of each device", rows: [["main host", ...share(plan.host)],
      ...plan.shards.map((shard) => /** @type {Row} */ ([`${shard.device} ${shard.ggml_device}`, ...share(shard)]))] },
    { title: "Command of llama-server", rows: commandRows(record) },
    ...workers.map((worker) => ({ title: `Command of ${worker.device}`, rows: commandRows(worker) })),
    { title: "Workers", rows: workers.map(({ device, link, host, port, engine_build, rpc_protocol, round_trip_ms }) => [device,
      `${link || `${host}:${port}`}, build ${engine_build}, RPC ${rpc_protocol}, ${milliseconds(round_trip_ms)}`, round_trip_ms]) },
    { title: "Memory measured", rows: memory.map(({ process, measured_bytes }) =>
      [process, measured_bytes === null ? "not seen" : bytes(measured_bytes), measured_bytes ?? 0]) },
    { title: "Sent over links", rows: links.map(({ device, sent_bytes, received_bytes }) =>
      [device, `${bytes(sent_bytes)} sent, ${bytes(received_bytes)} received`, sent_bytes]) },
  ];
}

/** @param {Plan} plan @returns {Row[]} */
const planRows = ({ model, ctx_tokens, slots, kv_type, ubatch, prediction }) => [
  ["model", model.path ?? model.name], ["context", tokensText(ctx_tokens), ctx_tokens], ["slots", String(slots)],
  ["KV cache", kv_type], ["ubatch", String(ubatch)],
  ["expected speed", prediction ? speed(prediction.decode_tokens_per_s) : "", prediction?.decode_tokens_per_s],
  ["expected load", prediction ? duration(prediction.load_s) : "", prediction?.load_s],
];

/** @param {{layers: number, peak_bytes: number}} use @returns {[string, number]} */
const share = ({ layers, peak_bytes }) => [`${plural(layers, "layer")}, ${bytes(peak_bytes)}`, peak_bytes];

/** @param {{argv: string[], environment: Record<string, string>}} command @returns {Row[]} */
const commandRows = ({ argv, environment }) =>
  [...Object.entries(environment).map(([name, value]) => /** @type {Row} */ ([`${name}=`, value])), ...argumentsOf(argv)];

/** @param {number} count */
export const tokensText = (count) => `${count.toLocaleString("en")} tokens`;

/** Seconds from the launch to the first token; null: it never came. @param {Pick<LaunchRecord, "timeline">} record */
export const readyAfter = ({ timeline }) => timeline.find(({ name }) => name === "first token")?.at_s ?? null;

/** @param {Pick<LaunchRecord, "timeline">} record */
export const readyText = (record) => (readyAfter(record) === null ? "never" : duration(readyAfter(record)));

/** @param {LaunchRecord} record */
export const devicesOf = ({ plan }) => [...new Set(plan.shards.map(({ device }) => device))].join(", ") || "main host alone";

/** One line for a POSIX shell. @param {string[]} argv @param {Record<string, string>} environment */
export function shellLine(argv, environment) {
  const quoted = (/** @type {string} */ word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`);
  const set = Object.entries(environment).map(([name, value]) => `${name}=${quoted(value)}`);
  return [...(set.length ? ["env", ...set] : []), ...argv.map(quoted)].join(" ");
}
