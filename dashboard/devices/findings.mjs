// @ts-check
// What the doctor finds: blocking first, what is well folded to a count, each with the one thing to do.
/** @import { Ask, Checked, Finding, State } from "../types.mjs" */
/** @import { Check } from "./state.mjs" */

import { h } from "../dom.mjs";
import { age, plural, sentence } from "../format.mjs";
import { badge } from "../parts.mjs";
import { ask } from "../state.mjs";

/** The worst first. */
const ORDER = ["blocks", "warning", "unknown", "ok"];
/** @type {Record<string, string>} */
const WORDS = { blocks: "blocks", warning: "warning", unknown: "not known", ok: "ok" };
/** How long an answer takes at most, for what is said while it is awaited. */
const MOST_S = 30;

/** @param {Finding[]} findings */
export const sorted = (findings) => [...findings].sort((a, b) => ORDER.indexOf(a.verdict) - ORDER.indexOf(b.verdict));

/** The worst of them as a number; 0 blocks. @param {Checked} checked */
const worst = ({ findings }) => Math.min(ORDER.length, ...findings.map(({ verdict }) => ORDER.indexOf(verdict)));

/** How many there are of each verdict. @param {Finding[]} findings */
export function countWords(findings) {
  const count = (/** @type {string} */ verdict) => findings.filter((each) => each.verdict === verdict).length;
  const [blocks, warnings, unknown, ok] = ORDER.map(count);
  return [
    blocks && (blocks === 1 ? "1 thing blocks" : `${blocks} things block`), warnings && plural(warnings, "warning"),
    unknown && `${unknown} not known`, ok && `${ok} ok`,
  ].filter(Boolean).join(", ") || "nothing was checked";
}

/** For a message to somebody who can help. @param {Checked[]} results */
export const asText = (results) => results.map(({ device, findings }) => [
  `${device}: ${countWords(findings)}`,
  ...sorted(findings).map(({ verdict, title, found, remedy }) =>
    `  [${WORDS[verdict] ?? verdict}] ${title}: ${found}${verdict !== "ok" && remedy ? `\n      do: ${remedy}` : ""}`),
].join("\n")).join("\n\n");

/** @param {Finding} finding */
const item = ({ check, title, verdict, found, remedy }) => h("li", { key: `${check} ${title}` },
  h("p", { class: "row start" }, badge(verdict, WORDS[verdict] ?? verdict), h("strong", null, title)),
  h("p", null, sentence(found)),
  verdict !== "ok" && remedy && h("p", { class: "remedy" }, h("span", { class: "hidden-text" }, "What to do: "), remedy));

/** @param {Finding[]} findings */
export function findingList(findings) {
  const wrong = sorted(findings).filter(({ verdict }) => verdict !== "ok");
  const ok = findings.filter(({ verdict }) => verdict === "ok");
  return [
    wrong.length > 0 && h("ul", { key: "wrong", class: "findings" }, wrong.map(item)),
    ok.length > 0 && h("details", { key: "ok" }, h("summary", null, `${plural(ok.length, "check")} ${ok.length === 1 ? "is" : "are"} ok`),
      h("ul", { class: "findings" }, ok.map(item))),
  ];
}

/** @param {string} key @param {Checked[]} results @param {boolean} isCopied */
const head = (key, results, isCopied, /** @type {any[]} */ ...words) => h("div", { class: "row" }, h("p", { class: "hint" }, words),
  h("p", { class: "actions" },
    h("button", { type: "button", "data-action": "copy", "data-key": `check-${key}` }, isCopied ? "Copied" : "Copy as text"),
    h("button", { type: "button", class: "plain", "data-action": "devices/check-close", "data-key": key }, "Close")),
  h("pre", { id: `check-${key}`, hidden: true }, asText(results)));

/** @param {string} what @param {string} since */
const waiting = (what, since) => h("p", { key: "waiting", class: "message busy" },
  badge("connecting", `Checking ${what}…`), ` ${since} so far, up to ${MOST_S} s.`);

/** @param {Ask} asked */
const refused = ({ error }) => error && h("p", { key: "error", class: "error", role: "alert" }, error);

/**
 * What was found on one device, while and after it was asked.
 * @param {{key: string, name: string, check: Check | undefined, checkAge: string, asked: Ask, isCopied: boolean}} what
 */
export function checkView({ key, name, check, checkAge, asked, isCopied }) {
  if (!check) return refused(asked);
  if (!check.results) return waiting(name, checkAge);
  // The device of the main host itself comes with the main host's own findings.
  const own = check.results.filter(({ device }) => device === name);
  const results = own.length ? own : check.results;
  const findings = results.flatMap((each) => each.findings);
  return h("section", { key: "check", class: "check", "aria-label": `Found on ${name}` },
    head(key, results, isCopied, h("strong", null, countWords(findings)), `, ${checkAge} ago`),
    findingList(findings));
}

/** What was found everywhere. @param {State} state @param {number} now_ms */
export function checkAllView(state, now_ms) {
  /** @type {Check | undefined} */
  const check = state.views.devices.checks.all;
  const asked = ask(state, "check all");
  if (!check) return refused(asked);
  const since = age((now_ms - check.since_ms) / 1000);
  if (!check.results) return waiting(plural(Object.keys(state.devices).length, "device"), since);
  const results = [...check.results].sort((a, b) => worst(a) - worst(b) || a.device.localeCompare(b.device, "en", { numeric: true }));
  const isWell = (/** @type {Checked} */ each) => worst(each) >= ORDER.indexOf("ok");
  const well = results.filter(isWell);
  return h("section", { key: "check", class: "card check", "aria-labelledby": "check-title" },
    h("h3", { id: "check-title" }, "What was found"),
    head("all", results, state.copied === "check-all", `${results.length} checked, ${since} ago`),
    results.filter((each) => !isWell(each)).map(({ device, findings }) => h("section", { key: device, class: "checked" },
      h("p", { class: "row" }, h("h4", null, device), h("span", { class: "hint" }, countWords(findings))), findingList(findings))),
    well.length > 0 && h("p", null, badge("ok"), ` ${well.map(({ device }) => device).join(", ")}: nothing is wrong.`));
}
