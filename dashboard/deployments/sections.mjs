// @ts-check
// Parts of one deployment: what happened, how far it is, how it runs.
/** @import { Deployment, Link, Milestone, RequestRecord, TokenTime, Traffic } from "../types.mjs" */

import { h, memo } from "../dom.mjs";
import { age, duration, linkWords, milliseconds, percent, sentence, speed } from "../format.mjs";
import { address } from "../routes.mjs";
import { line, ring, roundUp, stackedArea, stackedBar } from "./charts.mjs";
import { hueOf, loadRows, loadTotal, loadWords, medianFirstToken, phases, speedNow, timeRows, waitWords, wholeTime } from "./facts.mjs";

const EVIDENCE_SHOWN = 3;
const SPEEDS_SHOWN = 60;

/** @param {NonNullable<ReturnType<typeof import("./facts.mjs").story>>} told @param {Traffic | undefined} traffic */
export function storyView(told, traffic) {
  const { evidence, device } = told;
  const rest = evidence.slice(EVIDENCE_SHOWN);
  return h("section", { key: "story", class: `card story ${told.tone}`, "aria-labelledby": "story-title" },
    h("div", { class: "story-head" },
      h("h3", { id: "story-title" }, told.title),
      told.countdown && h("p", { class: "countdown" }, ring(told.left), told.countdown)),
    h("p", { class: "story-what" }, told.what),
    told.also && h("p", null, told.also),
    h("dl", { class: "answers" },
      answer("What happens now", [told.now, traffic && traffic.waiting > 0 && ` ${waitWords(traffic.waiting)}`]),
      told.remedy && answer("What to do", told.remedy),
      device && answer("Device", [h("a", { href: address("devices", device.id) }, device.name), `, ${device.state}`])),
    evidence.length > 0 && h("div", { key: "evidence" },
      h("h4", null, "What shows it"),
      h("pre", null, evidence.slice(0, EVIDENCE_SHOWN).join("\n")),
      rest.length > 0 && h("details", null, h("summary", null, `${rest.length} more`), h("pre", null, rest.join("\n")))),
    h("p", { class: "hint" }, [told.failures, told.code].filter(Boolean).join(" · ")));
}

/** @param {string} name @param {any} value */
const answer = (name, value) => h("div", { key: name }, h("dt", null, name), h("dd", null, value));

/** @param {Deployment} deployment @param {number} now_ms */
export function stepsView(deployment, now_ms) {
  const list = phases(deployment, now_ms);
  return [
    h("h3", { key: "title" }, list.find(({ isCurrent }) => isCurrent)?.what),
    deployment.reason && !deployment.cause && h("p", { key: "reason" }, sentence(deployment.reason)),
    h("ol", { key: "steps", class: "phases" }, list.map(({ name, label, isDone, isCurrent, took_s }) =>
      h("li", { key: name, class: isDone && "done", "aria-current": isCurrent && "step" },
        h("span", null, label, isDone && h("span", { class: "hidden-text" }, " done")),
        h("small", { class: "figure" }, took_s === null ? "" : isCurrent ? age(took_s) : duration(took_s))))),
  ];
}

/** @param {Deployment} deployment */
export function loadsView(deployment) {
  const rows = loadRows(deployment);
  const total = loadTotal(rows);
  const bar = (/** @type {{loaded_bytes: number, weight_bytes: number}} */ row, /** @type {string} */ label) =>
    h("progress", { max: 100, value: percent(row.loaded_bytes, row.weight_bytes), "aria-label": label });
  return h("div", { key: "loads", class: "loads" },
    rows.length > 1 && h("div", { key: "total", class: "total" },
      h("p", null, h("strong", null, `${percent(total.loaded_bytes, total.weight_bytes)} %`), ` ${loadWords(total)}`),
      bar(total, "All weights")),
    h("ul", null, rows.map((row) => h("li", { key: row.device },
      h("p", { class: "row" }, h("strong", null, row.device), h("span", { class: "figure" }, loadWords(row))),
      bar(row, `Weights on ${row.device}`)))));
}

/**
 * @param {Deployment} deployment @param {TokenTime[]} readings @param {RequestRecord[]} requests newest first
 * @param {Traffic | undefined} traffic
 */
export function runningView(deployment, readings, requests, traffic) {
  const { generated_tokens, plan, token_time } = deployment;
  const first_s = medianFirstToken(requests.slice(0, 20));
  const speeds = requests.flatMap(({ tokens_per_s }) => tokens_per_s ?? []).slice(0, SPEEDS_SHOWN).reverse();
  const pace = speedNow(deployment, traffic);
  const expected = plan?.prediction?.decode_tokens_per_s;
  const figure = (/** @type {string} */ name, /** @type {any} */ value, /** @type {any} */ note) =>
    h("div", { key: name }, h("dt", null, name), h("dd", null, h("strong", null, value), note && h("small", null, note)));
  return [
    h("section", { key: "running", class: "card", "aria-label": "How it runs" },
      h("dl", { class: "tiles" },
        figure("Tokens per second", pace.value === null ? "–" : pace.value.toFixed(1),
          [pace.when, expected && `${expected.toFixed(1)} planned`].filter(Boolean).join("; ")),
        figure("Time to first token", first_s === null ? "–" : duration(first_s), first_s !== null && "median of recent requests"),
        traffic && figure("Requests", `${traffic.active} of ${traffic.slots}`,
          traffic.waiting > 0 ? `slots busy, ${traffic.waiting} waiting` : "slots busy"),
        generated_tokens != null && figure("Tokens made", generated_tokens.toLocaleString("en"), "in this launch")),
      speeds.length > 1 && memo("speeds", [requests[0]], () => speedsView(speeds))),
    token_time && memo("time", [token_time, plan], () => timeView(deployment, token_time, readings)),
  ];
}

/** @param {number[]} speeds oldest first */
function speedsView(speeds) {
  const most = roundUp(Math.max(...speeds));
  const title = `Tokens per second of the last ${speeds.length} requests`;
  const [least, highest, newest] = [Math.min(...speeds), Math.max(...speeds), speeds[speeds.length - 1]]
    .map((value) => value.toFixed(1));
  const words = `${title}: ${least} to ${highest}, the newest ${newest}`;
  return plot(speed(most), line(speeds, most, words), `${title}, the newest on the right.`);
}

/** @param {string} most @param {any} chart @param {string} words */
const plot = (most, chart, words) => h("div", { class: "plot" },
  h("p", { class: "axis" }, h("span", null, most), h("span", null, "0")), chart, h("p", { class: "hint" }, words));

/** @param {Deployment} deployment @param {TokenTime} token_time @param {TokenTime[]} readings */
function timeView({ plan }, token_time, readings) {
  const rows = timeRows(token_time, plan);
  const kinds = rows.map(({ device }) => hueOf(plan, device));
  const parts = rows.flatMap(({ device, compute_ms, wire_ms }, index) => [
    { value: compute_ms, kind: kinds[index], title: `${device}: ${milliseconds(compute_ms)} compute` },
    { value: wire_ms, kind: `${kinds[index]} wire`, title: `${device}: ${milliseconds(wire_ms)} wire` },
  ]).filter(({ value }) => value > 0);
  return h("section", { class: "card", "aria-labelledby": "time-title" },
    h("h3", { id: "time-title" }, `Where the ${milliseconds(wholeTime(token_time))} of each token go`),
    stackedBar(parts, parts.map((part) => part.title).join(", ")),
    h("p", { class: "hint" }, "Faded: on the wire."),
    rows.map(({ device, factor, isWire, isSlow }) => isSlow && h("p", { key: device, class: "message warn" },
      `${device} takes ${factor?.toFixed(1)} times as long as planned, mostly ${isWire ? "on the wire" : "computing"}.`)),
    h("div", { class: "pair" },
      h("table", { class: "token-times" },
        h("thead", null, h("tr", null, ["Where", "Compute", "Wire", "Planned"].map((name) => h("th", { scope: "col" }, name)))),
        h("tbody", null, rows.map((row, index) => timeRow(row, kinds[index])))),
      readings.length > 1 && historyView(readings, kinds)));
}

/** @param {ReturnType<typeof timeRows>[number]} row @param {string} kind */
function timeRow({ device, compute_ms, wire_ms, expected, isSlow }, kind) {
  const figure = (/** @type {number} */ ms) => milliseconds(ms).replace(" ", "\u00a0"); // a figure stays with its unit
  const planned = expected && [expected.compute_ms, expected.wire_ms].filter((ms) => ms > 0).map(figure).join(" + ");
  return h("tr", { key: device, class: isSlow && "slow" },
    h("th", { scope: "row" }, h("span", { class: `mark ${kind}`, "aria-hidden": "true" }), device),
    h("td", null, figure(compute_ms)),
    h("td", null, wire_ms > 0 && figure(wire_ms)),
    h("td", null, planned || "–"));
}

/** @param {TokenTime[]} readings @param {string[]} kinds */
function historyView(readings, kinds) {
  const sums = readings.map(wholeTime);
  const most = roundUp(Math.max(...sums));
  const columns = readings.map(({ host_ms, workers }) => [{ compute_ms: host_ms, wire_ms: 0 }, ...workers]
    .flatMap(({ compute_ms, wire_ms }) => [compute_ms, wire_ms]));
  const [least, highest] = [Math.min(...sums), Math.max(...sums)].map(milliseconds);
  const words = `Time of a token, last ${readings.length} readings: ${least} to ${highest}`;
  return plot(milliseconds(most), stackedArea(columns, kinds.flatMap((kind) => [kind, `${kind} wire`]), most, words),
    "Per token, while it generated, the newest on the right.");
}

/** @param {Milestone[]} timeline @param {boolean} isServing */
export function timelineView(timeline, isServing) {
  const total_s = Math.max(...timeline.map(({ at_s }) => at_s), 0.001);
  return h("section", { key: "timeline", class: "card", "aria-labelledby": "timeline-title" },
    h("h3", { id: "timeline-title" }, isServing ? `Launched in ${duration(total_s)}` : "The last launch"),
    h("ol", { class: "milestones" }, timeline.map(({ name, at_s, took_s }) => h("li", { key: name },
      h("span", null, name),
      h("span", { class: "track", "aria-hidden": "true" },
        h("span", { vars: { "--from": Math.max(0, at_s - took_s) / total_s, "--part": took_s / total_s } })),
      h("span", { class: "figure" }, duration(took_s))))));
}

/** @param {Link[]} links */
export const linksView = (links) => h("section", { key: "links", class: "card", "aria-labelledby": "links-title" },
  h("h3", { id: "links-title" }, "Links"),
  h("ul", { class: "sentences" }, links.map((link) => h("li", { key: link.device },
    h("strong", null, link.device), ` ${linkWords(link) || link.state}`, link.detail && `: ${link.detail}`))));
