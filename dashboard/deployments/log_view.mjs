// @ts-check
// The logs of one deployment: choices above, and those rows that are in sight.
/** @import { Deployment, State } from "../types.mjs" */
/** @import { Line, Log } from "./logs.mjs" */

import { h, memo } from "../dom.mjs";
import { devicesOf, hueOf } from "./facts.mjs";
import { KEPT, windowOf, WRAPPED } from "./logs.mjs";

export const ROW_REM = 1.25; // as in deployments.css
const IN_SIGHT = 36; // rows; as many as the tallest box holds
const SPARE = 16;

const count = (/** @type {number} */ lines) => lines.toLocaleString("en");

/** @param {Log} log @param {Deployment} deployment @param {State} state */
export function logView(log, deployment, state) {
  const { matches, lines, follow, wrap } = log;
  const workers = devicesOf(deployment).filter((name) => name !== "Main host");
  const names = [...new Set(["llama-server", ...(workers.length ? ["link"] : []), ...workers, ...Object.keys(log.files)])];
  const silent = Object.entries(log.silent).filter(([, detail]) => detail);
  const choice = (/** @type {string} */ name, /** @type {string} */ label, /** @type {boolean} */ checked) =>
    h("label", { key: name, class: "choice" },
      h("input", { type: "checkbox", name, checked, "data-action": "deployments/log-choose" }), label);
  const button = (/** @type {string} */ action, /** @type {any} */ label, /** @type {object} */ more = {}) =>
    h("button", { key: action, type: "button", "data-action": `deployments/${action}`, ...more }, label);
  return h("div", { class: "logs" },
    h("div", { class: "log-processes", role: "group", "aria-label": "Processes" }, names.map((name) =>
      button("log-process", [h("span", { class: "mark", "aria-hidden": "true" }), name],
        { key: name, class: hueOf(deployment.plan, name), "data-process": name, "aria-pressed": String(!log.hidden[name]) }))),
    h("div", { class: "log-tools" },
      h("input", { type: "search", placeholder: "Only lines with …", "aria-label": "Only lines with this text",
        "data-input": "deployments/log-text" }),
      choice("isSevere", "Only warnings and errors", log.isSevere),
      choice("wrap", "Wrap", wrap),
      button("log-follow", follow ? "Pause" : "Follow", { "aria-pressed": String(follow) }),
      button("log-copy", state.copied === "log" ? "Copied" : "Copy"),
      button("log-download", "Download")),
    log.isLost && h("p", { key: "lost", class: "message warn" }, "The stream of lines ended. Trying again."),
    silent.map(([name, detail]) => h("p", { key: name, class: "message warn" }, `No log of ${name}: ${detail}`)),
    h("div", { key: wrap ? "wrapped" : "rows", class: `log ${wrap ? "wrap" : ""}`, tabindex: 0, role: "region",
      "aria-label": "Lines of the logs", "data-follow": follow, "data-scroll": "deployments/log-scroll" },
    matches.length ? rowsView(log, deployment)
      : h("p", { class: "hint" }, lines.length ? "No line matches." : "Nothing was logged yet.")),
    h("p", { class: "hint" },
      matches.length < lines.length && `${count(matches.length)} of `, count(lines.length), lines.length === 1 ? " line." : " lines.",
      lines.length >= KEPT && " Older ones are gone from here; the launch record has them.",
      wrap && matches.length > WRAPPED && ` The last ${WRAPPED} are shown; without wrapping, all.`));
}

/** @param {Log} log @param {Deployment} deployment */
function rowsView({ matches, follow, wrap, top }, { plan }) {
  const total = matches.length;
  const { from, to } = wrap ? windowOf(total, total, WRAPPED, 0) : windowOf(total, follow ? total : top, IN_SIGHT, SPARE);
  const space = (/** @type {string} */ key, /** @type {number} */ rows) =>
    !wrap && h("div", { key, class: "space", vars: { "--rows": rows } });
  const lines = matches.slice(from, to);
  const hues = Object.fromEntries([...new Set(lines.map(({ process }) => process))].map((name) => [name, hueOf(plan, name)]));
  return [
    space("before", from),
    lines.map((line) => memo(String(line.n), [line, hues[line.process]], () => lineView(line, hues[line.process]))),
    space("after", total - to),
  ];
}

/** @param {Line} line @param {string} hue */
const lineView = ({ process, text, severity }, hue) => h("p", { class: severity },
  h("span", { class: `who ${hue}` }, process), text);
