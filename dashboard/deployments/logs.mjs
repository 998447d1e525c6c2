// @ts-check
// The lines of all processes, as they came: a ring with a filter. Pure.
//
// `matches` is kept beside `lines` and grows with them, so that no frame looks at all lines.

export const KEPT = 20_000;
export const WRAPPED = 500; // lines of uneven height are all in the page, so there are fewer
const LONGEST = 4000; // characters of a line that are kept
const SEVERITIES = /** @type {[string, RegExp][]} */ ([
  ["bad", /^[\d.:\s]*E\s|\b(error|failed|failure|fatal|abort(ed|ing)?|panic|exception|out of memory|killed|refused|timed out)\b/i],
  ["warn", /^[\d.:\s]*W\s|\bwarn(ing)?\b/i],
]);
const ESCAPES = /\x1b\[[0-9;]*[A-Za-z]/g; // colours of a terminal

/**
 * @typedef {{n: number, process: string, text: string, severity: string}} Line `n` counts up, for ever
 * @typedef {{id: string, lines: Line[], matches: Line[], next: number, files: Record<string, string>,
 *   silent: Record<string, string>, again: Record<string, boolean>, hidden: Record<string, boolean>, text: string,
 *   isSevere: boolean, follow: boolean, wrap: boolean, top: number, gone: number, isLost: boolean}} Log
 *   `again`: begins anew after a loss, with lines that may be here already; `top`: first row in sight; `gone`: matches
 *   that were dropped
 */

/** @param {string} id of the deployment @returns {Log} */
export const emptyLog = (id) => ({ id, lines: [], matches: [], next: 0, files: {}, silent: {}, again: {}, hidden: {}, text: "",
  isSevere: false, follow: true, wrap: false, top: 0, gone: 0, isLost: false });

/** @param {string} text */
export const severityOf = (text) => SEVERITIES.find(([, pattern]) => pattern.test(text))?.[0] ?? "";

/** What tells whether a line is shown; null: all are. @param {Log} log @returns {((line: Line) => boolean) | null} */
function filterOf({ hidden, text, isSevere }) {
  const wanted = text.trim().toLowerCase();
  if (!wanted && !isSevere && !Object.values(hidden).some(Boolean)) return null;
  return ({ process, severity, text: own }) =>
    !hidden[process] && (!isSevere || severity !== "") && (!wanted || own.toLowerCase().includes(wanted));
}

/**
 * Lines that came. Another file of a process is that of another launch.
 * @param {Log} log @param {{process: string, file: string, text: string}} chunk @returns {Log}
 */
export function append(log, { process, file, text }) {
  const isOther = (log.files[process] ?? file) !== file;
  const before = isOther ? only(log, (line) => line.process !== process) : log;
  const texts = text.split(/\r?\n/).map((each) => each.replace(ESCAPES, "").slice(0, LONGEST));
  if (texts.at(-1) === "") texts.pop();
  const seen = log.again[process] && !isOther ? before.lines.filter((line) => line.process === process) : [];
  const fresh = texts.slice(overlap(seen.map((line) => line.text), texts))
    .map((each, index) => ({ n: before.next + index, process, text: each, severity: severityOf(each) }));
  return trimmed({
    ...before,
    isLost: false,
    next: before.next + fresh.length,
    files: { ...log.files, [process]: file },
    silent: { ...log.silent, [process]: "" },
    again: { ...log.again, [process]: false },
    lines: fresh.length ? before.lines.concat(fresh) : before.lines,
    matches: grown(before, fresh),
  });
}

/** @param {Log} log @param {Line[]} fresh */
function grown(log, fresh) {
  const filter = filterOf(log);
  const matching = filter ? fresh.filter(filter) : fresh;
  return matching.length ? log.matches.concat(matching) : log.matches;
}

/** @param {Log} log @param {(line: Line) => boolean} isKept @returns {Log} */
const only = (log, isKept) => ({ ...log, follow: true, lines: log.lines.filter(isKept), matches: log.matches.filter(isKept) });

/** The oldest lines go; what is in sight stays so. @param {Log} log @returns {Log} */
function trimmed(log) {
  if (log.lines.length <= KEPT) return log;
  const lines = log.lines.slice(-KEPT);
  const left = log.matches.findIndex((line) => line.n >= lines[0].n);
  const count = left < 0 ? log.matches.length : left;
  return { ...log, lines, matches: log.matches.slice(count), top: Math.max(0, log.top - count), gone: log.gone + count };
}

/** How many of `texts` are here already, the last of them being the last of `seen`. @param {string[]} seen @param {string[]} texts */
export function overlap(seen, texts) {
  const last = seen.length - 1;
  for (let count = seen.length ? texts.length : 0; count > 0; count -= 1) {
    let same = 0;
    while (same < count && same <= last && seen[last - same] === texts[count - 1 - same]) same += 1;
    if (same === count || same > last) return count;
  }
  return 0;
}

/**
 * Another filter or way to show, which begin at the end.
 * @param {Log} log @param {Partial<Pick<Log, "hidden" | "text" | "isSevere" | "follow" | "wrap">>} change @returns {Log}
 */
export function changed(log, change) {
  const after = { ...log, follow: true, ...change };
  if (!("hidden" in change || "text" in change || "isSevere" in change)) return after;
  const filter = filterOf(after);
  return { ...after, matches: filter ? after.lines.filter(filter) : after.lines };
}

/** The stream ended: what comes next begins with lines that are here already. @param {Log} log @returns {Log} */
export const lost = (log) =>
  ({ ...log, isLost: true, again: Object.fromEntries(Object.keys(log.files).map((name) => [name, true])) });

/**
 * The rows that have to be in the page: those in sight, and some around them.
 * @param {number} total @param {number} top first in sight @param {number} inSight @param {number} spare
 */
export function windowOf(total, top, inSight, spare) {
  const first = Math.max(0, Math.min(top, total - inSight));
  return { from: Math.max(0, first - spare), to: Math.min(total, first + inSight + spare) };
}
