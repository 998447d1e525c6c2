// @ts-check
/** @import { EventRecord, LaunchRecord, LaunchWorker, Link, ProcessMemory, State } from "../types.mjs" */
/** @import { Pair } from "./compare.mjs" */
/** @import { Records } from "./state.mjs" */

import { h, memo } from "../dom.mjs";
import { bytes, duration, milliseconds } from "../format.mjs";
import { badge, copyable, errorText, factList, viewHead } from "../parts.mjs";
import { planView } from "../plan_view.mjs";
import { address } from "../routes.mjs";
import { compared, devicesOf, readyText, shellLine, tokensText } from "./compare.mjs";

/** @param {State} state */
export function render(state) {
  /** @type {Records} */
  const own = state.views.records;
  const [left, right] = state.route.parts;
  const [one, other] = [own.known[left], own.known[right]];
  if (!left) return listView(own, state);
  if (!one || (right && !other)) return waiting(state, right ? [left, right] : [left]);
  return right ? compareView(one, other, own.showsAll) : recordView(one, own, state);
}

/**
 * The title stays the same element while what is below it is read: it has the focus.
 * @param {string} name @param {string} title @param {any} actions @param {...any} content
 */
const frame = (name, title, actions, ...content) =>
  h("div", { class: `${name} stack` }, viewHead(title, h("div", { class: "actions" }, actions)), content);

const back = () => h("a", { class: "button", href: address("records") }, "All launches");

/** @param {State} state @param {string[]} ids */
function waiting(state, ids) {
  const error = ids.map((id) => errorText(state, `record ${id}`)).find(Boolean);
  return frame("record", `Launch ${ids.join(" and ")}`, back(), error || h("p", { class: "hint" }, "Reading…"));
}

/** @param {string} iso */
const when = (iso) => new Date(iso).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "medium" });

/** The first cell of a row is its header. @param {string} name @param {string[]} head @param {any[][]} rows */
function table(name, head, rows) {
  if (!rows.length) return null;
  return h("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": name }, h("table", null,
    h("thead", null, h("tr", null, head.map((cell) => h("th", { scope: "col" }, cell)))),
    h("tbody", null, rows.map(([first, ...cells]) =>
      h("tr", null, h("th", { scope: "row" }, first), cells.map((cell) => h("td", null, cell)))))));
}

// All

/** @param {Records} own @param {State} state */
function listView({ list, picked }, state) {
  const [older, newer] = [...picked].sort((a, b) => Number(a) - Number(b));
  const compare = newer
    ? h("a", { class: "button primary", href: address("records", older, newer) }, `Compare ${older} and ${newer}`)
    : list && list.length > 1 && h("p", { class: "hint" }, older ? "Tick one more to compare." : "Tick two to compare them.");
  return frame("records", "Launch records", compare,
    errorText(state, "records"),
    list?.length === 0 && h("p", { class: "empty" },
      "Nothing was launched yet. Each launch leaves a record here: its commands, plan, times and end."),
    list !== null && list.length > 0 && memo("list", [list, picked], () => h("div", { class: "card" },
      table("Launches", ["Launch", "Outcome", "Ready after", "Devices", "Context", "Started"],
        list.map((record) => listRow(record, picked))))));
}

/** @param {LaunchRecord} record @param {string[]} picked */
function listRow(record, picked) {
  const { id, deployment, outcome, plan, started_at } = record;
  const isPicked = picked.includes(String(id));
  return [
    h("span", { class: "pick" },
      h("label", { class: "choice" }, h("span", { class: "hidden-text" }, `Compare launch ${id}`),
        h("input", { type: "checkbox", value: id, checked: isPicked, disabled: picked.length > 1 && !isPicked, "data-action": "records/pick" })),
      h("a", { href: address("records", id) }, `${id} ${deployment}`)),
    badge(outcome), readyText(record), devicesOf(record), tokensText(plan.ctx_tokens), when(started_at),
  ];
}

// One

/** @param {LaunchRecord} record @param {Records} own @param {State} state */
function recordView(record, own, state) {
  const id = String(record.id);
  const copied = state.copied.startsWith(`launch-${id}-`) ? state.copied : "";
  const report = h("a", { class: "button", href: `/api/launches/${id}/report`, download: true }, "Download a report");
  return frame("record", `Launch ${id} of ${record.deployment}`, [back(), report],
    memo(id, [record, own.shell[id], copied], () => h("div", { class: "stack" },
      summary(record),
      h("section", { class: "card" }, planView(record.plan)),
      section("Timeline", record.timeline.length > 0 && timelineView(record)),
      section("Commands", commandsView(record, own, state)),
      section("Workers", table("Workers", ["Device", "Address", "Seen by llama-server as", "Build", "RPC", "Round trip"],
        record.workers.map(workerRow))),
      section("Memory", table("Memory", ["Process", "Predicted", "May use", "Measured", "Of the prediction"],
        record.memory.map(memoryRow))),
      section("Links", table("Links", ["Device", "Weights", "Were there already", "Sent", "Received", "Of its time on the wire"],
        record.links.map(linkRow))),
      section("What happened", record.transitions.length > 0 && h("ol", { class: "events" }, record.transitions.map(eventView))))));
}

/** @param {string} title @param {any} content */
const section = (title, content) => content && h("section", { key: title, class: "card" }, h("h3", null, title), content);

/** @param {LaunchRecord} record */
function summary(record) {
  const { plan, engine, cause, reason, outcome, main_host, started_at, ended_at } = record;
  return h("section", { class: "card stack" }, h("h3", null, badge(outcome)),
    (cause || reason) && h("div", { class: `message ${outcome === "failed" ? "bad" : ""}` },
      h("p", null, cause?.sentence ?? reason),
      cause && cause.evidence.length > 0 && h("pre", null, cause.evidence.join("\n")),
      cause?.remedy && h("p", null, cause.remedy)),
    factList([
      ["Model", plan.model.path ?? plan.model.name], ["Context", tokensText(plan.ctx_tokens)], ["Slots", plan.slots],
      ["Started", when(started_at)], ["Ended", ended_at && when(ended_at)], ["Ready after", readyText(record)],
      ["Main host", main_host], ["Engine", `${engine.version} (${engine.build}), RPC ${engine.rpc_protocol}`], ["Program", engine.path],
    ], "wide"));
}

/** @param {LaunchRecord} record */
function timelineView({ timeline }) {
  const whole = timeline[timeline.length - 1].at_s || 1;
  return h("ol", { class: "times" }, timeline.map(({ name, at_s, took_s }) => h("li", { key: name }, h("span", null, name),
    h("div", { class: "track", "aria-hidden": "true" }, h("span", { vars: { "--from": (at_s - took_s) / whole, "--part": took_s / whole } })),
    h("span", { class: "figure" }, duration(took_s)))));
}

/** @param {LaunchRecord} record @param {Records} own @param {State} state */
function commandsView({ id, workers, argv, environment, main_host }, own, state) {
  const command = (/** @type {string} */ name, /** @type {string} */ label, /** @type {string} */ text) =>
    copyable(state, `launch-${id}-${name}`, label, text);
  const script = own.shell[id]?.map((each) => `# on ${each.host}\n${each.command}\n`).join("\n");
  return [
    workers.map((worker) => command(worker.device, worker.device, shellLine(worker.argv, worker.environment))),
    argv.length > 0 && command("llama-server", `llama-server on ${main_host}`, shellLine(argv, environment)),
    script && h("details", { key: "script" }, h("summary", null, "To repeat it by hand, without links"),
      h("p", { class: "hint" }, "Every rpc-server then listens on its own network, open to all who are on it."),
      command("script", "All commands", `#!/bin/sh\n${script}`)),
  ];
}

/** @param {number} share */
const percentText = (share) => `${Math.round(share * 100)} %`;

/** @param {LaunchWorker} worker */
const workerRow = ({ device, link, address: own, host, port, engine_build, rpc_protocol, round_trip_ms }) =>
  [device, link || own, `${host}:${port}`, engine_build, rpc_protocol, milliseconds(round_trip_ms)];

/** @param {ProcessMemory} use */
function memoryRow({ process, predicted_bytes, budget_bytes, measured_bytes, has_gpu }) {
  const share = measured_bytes && predicted_bytes ? percentText(measured_bytes / predicted_bytes) : "unknown";
  return [process, predicted_bytes ? bytes(predicted_bytes) : "unknown", bytes(budget_bytes),
    measured_bytes === null ? "not seen" : bytes(measured_bytes), has_gpu ? "a GPU’s part is not seen" : share];
}

/** @param {Link} link */
const linkRow = ({ device, weight_bytes, saved_bytes, sent_bytes, received_bytes, wire_share }) =>
  [device, ...[weight_bytes, saved_bytes, sent_bytes, received_bytes].map(bytes), wire_share === null ? "unknown" : percentText(wire_share)];

/** @param {EventRecord} event */
const eventView = ({ id, at, subject, change, text }) => h("li", { key: id },
  h("time", { datetime: at }, when(at)), h("strong", null, subject, " ", change), h("span", null, text));

// Two

/** @param {LaunchRecord} left @param {LaunchRecord} right @param {boolean} showsAll */
function compareView(left, right, showsAll) {
  const all = h("label", { class: "choice" },
    h("input", { type: "checkbox", checked: showsAll, "data-action": "records/all" }), "Show all");
  const sections = compared(left, right).map(({ title, rows }) => {
    const shown = rows.filter(({ isSame }) => showsAll || !isSame);
    return section(title, shown.length > 0 && h("dl", { class: "pairs" }, shown.map((pair) => pairView(pair, left.id, right.id))));
  }).filter(Boolean);
  return frame("compare", `Launches ${left.id} and ${right.id}`, [all, back()],
    h("div", { class: "sides" }, [left, right].map(({ id, deployment, outcome, started_at }) => h("p", { key: id, class: "card" },
      h("a", { href: address("records", id) }, `Launch ${id} of ${deployment}`), " ", badge(outcome), h("small", null, when(started_at))))),
    sections.length ? sections : h("p", { class: "empty" }, "They do not differ."));
}

/** @param {Pair} pair @param {number} left @param {number} right */
function pairView({ name, left: before, right: after, ratio, isSame }, left, right) {
  const side = (/** @type {number} */ id, /** @type {string | null} */ text, /** @type {any} */ more) => h("dd", { key: id },
    h("span", { class: "hidden-text" }, `Launch ${id}: `), text || h("em", null, text === null ? "not there" : "empty"), more);
  const times = ratio && !isSame && h("small", null, ` × ${ratio < 10 ? ratio.toFixed(2) : Math.round(ratio)}`);
  return h("div", { key: name, class: isSame && "same" }, h("dt", null, name), side(left, before, null), side(right, after, times));
}
