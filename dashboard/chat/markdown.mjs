// @ts-check
// Markdown as a virtual tree. It never makes HTML text: what a model writes can only become the few
// elements below with text in them, so nothing is left to be cleaned. Links go to http, https and
// mailto alone, and images are links too: nothing is fetched. Any text will do, also half of one that
// still comes in; the time is linear in its length, and its nesting is bounded.

import { h, memo } from "../dom.mjs";

/**
 * @typedef {import("../dom.mjs").VNode | string} Node
 * @typedef {{id: string, copied: string}} Place of a block: its id, and that of what was copied lately
 * @typedef {(place: Place, nesting: number, level: number) => import("../dom.mjs").VNode} Make
 * @typedef {{end: number, make: Make, depth?: number}} Block `end`: its first line no more
 * @typedef {{mark: string, count: number, index: number, isBoth: boolean}} Opener
 */

const MAX_NESTING = 8;
const MAX_OPEN = 24;
const FENCE = /^ *(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?: +(.*))?$/;
const RULE = /^ {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)(?:[-*+]|(\d{1,9})[.)])(?: {1,4}|$)/;
const TOKEN = /\\[^]|`+|\*+|_+|~+|!?\[|\]|<br ?\/?>|<https?:\/\/[^\s<>]*>|https?:\/\/[^\s<>[\]"`]*|&(?:amp|lt|gt|quot|nbsp|#39);|\n/gi;
const TARGET = /\(\s{0,9}(?:<([^<>\n]{0,2000})>|([^\s<>()]{0,2000}(?:\([^\s<>()]{0,500}\)[^\s<>()]{0,2000}){0,4}))(?:\s{1,9}(?:"[^"]{0,500}"|'[^']{0,500}'))?\s{0,9}\)/y;
const SAFE = /^(?:https?:\/\/|mailto:)[^\s\u0000-\u001f\u007f]+$/i;
const WORD = /[\p{L}\p{N}]/u;
/** @type {Record<string, string>} */
const ENTITIES = { "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&nbsp;": "\u00a0", "&#39;": "'" };

/**
 * One memo for each block, so that only the last one is made anew while a text grows.
 * @param {string} text @param {Place & {level: number}} place `level`: of its highest heading
 */
export function markdown(text, { id, copied, level }) {
  /** @type {number[]} */
  const above = []; // headings that the next one is below: levels are never skipped
  const lines = text.split(/\r\n?|[\n\u2028\u2029]/).map((line) => line.replace(/^[ \t]+/, (blank) => blank.replaceAll("\t", "    ")));
  return blocksOf(lines).map(([{ depth, make }, source], index) => {
    const own = `${id}-${index}`;
    const mine = `${copied}-`.startsWith(`${own}-`) ? copied : "";
    while (depth && above.length && above[above.length - 1] >= depth) above.pop();
    if (depth) above.push(depth);
    const at = Math.min(6, level + above.length - 1);
    return memo(own, [source, mine, depth && at], () => make({ id: own, copied: mine }, 0, at));
  });
}

/** @param {string[]} lines @returns {[Block, string][]} */
function blocksOf(lines) {
  /** @type {[Block, string][]} */
  const blocks = [];
  for (let at = 0; at < lines.length;) {
    const block = lines[at].trim() ? started(lines, at) ?? paragraph(lines, at) : null;
    if (block) blocks.push([block, lines.slice(at, block.end).join("\n")]);
    at = block?.end ?? at + 1;
  }
  return blocks;
}

/** @param {string[]} lines @param {Place} place @param {number} nesting @returns {any} */
function nested(lines, place, nesting) {
  if (nesting >= MAX_NESTING) return lines.join("\n");
  return blocksOf(lines).map(([{ make }], index) => make({ ...place, id: `${place.id}-${index}` }, nesting + 1, 0));
}

/** @typedef {(lines: string[], at: number) => Block | null} Start */

/** @type {(lines: string[], at: number) => Block} */
function paragraph(lines, at) {
  let end = at + 1;
  while (end < lines.length && !interrupts(lines, end)) end += 1;
  return { end, make: () => h("p", null, inline(lines.slice(at, end).map((line) => line.trim()).join("\n"))) };
}

/** Whether a line ends the paragraph before it. @param {string[]} lines @param {number} at */
function interrupts(lines, at) {
  const line = lines[at];
  const item = ITEM.exec(line);
  return !line.trim() || [FENCE, HEADING, RULE, QUOTE].some((mark) => mark.test(line)) || isTable(lines, at) ||
    (item && item[0] !== line && Number(item[2] ?? 1) === 1);
}

/** @type {Start} */
function fence(lines, at) {
  const [, mark, info] = FENCE.exec(lines[at]) ?? [];
  if (!mark) return null;
  const isEnd = (/** @type {string} */ line) => line.startsWith(mark) && line === mark[0].repeat(line.length);
  let end = at + 1;
  while (end < lines.length && !isEnd(lines[end].trim())) end += 1;
  const code = lines.slice(at + 1, end).map((line) => line.slice(Math.min(indent(lines[at]), indent(line)))).join("\n");
  return { end: end + 1, make: ({ id, copied }) => h("div", { class: "code" },
    h("div", { class: "row" }, h("span", null, info.trim().split(/\s/)[0].slice(0, 30) || "text"),
      h("button", { type: "button", "data-action": "copy", "data-key": id }, copied === id ? "Copied" : "Copy",
        h("span", { class: "hidden-text" }, " this code"))),
    h("pre", { id, tabindex: 0 }, code)) };
}

/** @type {Start} */
function heading(lines, at) {
  const [, marks, text = ""] = HEADING.exec(lines[at]) ?? [];
  if (!marks) return null;
  const bare = text.trim();
  let end = bare.length;
  while (bare[end - 1] === "#") end -= 1;
  const words = end && bare[end - 1] !== " " ? bare : bare.slice(0, end).trim();
  return { end: at + 1, depth: marks.length, make: (_, nesting, level) =>
    nesting ? h("p", null, h("strong", null, inline(words))) : h(`h${level}`, null, inline(words)) };
}

/** @type {Start} */
const rule = (lines, at) => (RULE.test(lines[at]) ? { end: at + 1, make: () => h("hr", null) } : null);

/** @type {Start} */
function quote(lines, at) {
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end += 1;
  const inner = lines.slice(at, end).map((line) => line.replace(QUOTE, ""));
  return inner.length ? { end, make: (place, nesting) => h("blockquote", null, nested(inner, place, nesting)) } : null;
}

/** @type {Start} */
function list(lines, at) {
  const number = ITEM.exec(lines[at])?.[2];
  /** @type {string[][]} */
  const items = [];
  let end = at;
  for (let next = at; next < lines.length;) {
    const found = ITEM.exec(lines[next]);
    if (!found || !found[2] !== !number || RULE.test(lines[next])) break;
    const inner = [lines[next].slice(found[0].length)];
    for (end = next + 1; ; end += 1) {
      for (next = end; next < lines.length && !lines[next].trim();) next += 1;
      if (next === lines.length) break;
      // Two columns are enough, also below "1. ": models are not that exact.
      const isInside = indent(lines[next]) >= found[1].length + 2;
      if (!isInside && (next > end || interrupts(lines, next) || ITEM.test(lines[next]))) break;
      for (; end < next; end += 1) inner.push("");
      inner.push(lines[end].slice(Math.min(indent(lines[end]), found[0].length)));
    }
    items.push(inner);
  }
  return items.length ? { end, make: (place, nesting) => h(number ? "ol" : "ul", { start: number && Number(number) },
    items.map((inner, index) => h("li", null, nested(inner, { ...place, id: `${place.id}-${index}` }, nesting)))) } : null;
}

/** @param {string} line */
const indent = (line) => line.length - line.trimStart().length;

/** @type {Start} */
function table(lines, at) {
  if (!isTable(lines, at)) return null;
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|")) end += 1;
  const sides = cells(lines[at + 1]).map((mark) => mark.endsWith(":") && (mark.startsWith(":") ? "middle" : "figure"));
  const row = (/** @type {string} */ tag, /** @type {string} */ line) => h("tr", null,
    cells(line).slice(0, sides.length).map((cell, column) => h(tag, { class: sides[column] }, inline(cell))));
  return { end, make: () => h("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": "Table" }, h("table", null,
    h("thead", null, row("th", lines[at])), h("tbody", null, lines.slice(at + 2, end).map((line) => row("td", line))))) };
}

/** @param {string[]} lines @param {number} at */
function isTable(lines, at) {
  const below = lines[at + 1] ?? "";
  if (!lines[at].includes("|") || !/^[ |:-]*$/.test(below)) return false;
  const marks = cells(below);
  return marks.every((mark) => /^:?-+:?$/.test(mark)) && marks.length === cells(lines[at]).length;
}

/** @param {string} line */
function cells(line) {
  const bare = line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
  return bare.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

const started = (/** @type {string[]} */ lines, /** @type {number} */ at) =>
  [fence, heading, rule, quote, list, table].reduce((/** @type {Block | null} */ found, start) => found ?? start(lines, at), null);

/**
 * Text with marks in it. Those that may yet be closed stand on a short stack: what is nested was on
 * it together, so its depth is bounded, and the search for a partner is as short in a long text.
 * @param {string} text @returns {Node[]}
 */
function inline(text) {
  /** @type {Node[]} */
  const nodes = [];
  /** @type {Opener[]} */
  const open = [];
  /** Places of runs of backticks by their length, the last first. @type {Map<number, number[]>} */
  const ticks = new Map();
  for (const { 0: { length }, index } of [...text.matchAll(/`+/g)].reverse()) {
    if (!ticks.get(length)?.push(index)) ticks.set(length, [index]);
  }
  const token = new RegExp(TOKEN);
  let at = 0;

  const push = (/** @type {string} */ mark, count = 1, isBoth = false) => {
    open.push({ mark, count, isBoth, index: nodes.push(mark.repeat(count)) - 1 });
    if (open.length > MAX_OPEN) open.shift();
  };
  const code = (/** @type {number} */ length) => {
    const places = ticks.get(length) ?? [];
    while (places.length && places[places.length - 1] < at) places.pop();
    const end = places.pop();
    if (end === undefined) return false;
    const inner = text.slice(at, end).replaceAll("\n", " ");
    nodes.push(h("code", null, inner.trim() && inner.startsWith(" ") && inner.endsWith(" ") ? inner.slice(1, -1) : inner));
    at = end + length;
    return true;
  };
  const closed = () => { // the bracket that was opened last
    const place = open.findLastIndex(({ mark }) => mark.endsWith("["));
    TARGET.lastIndex = at;
    const target = place < 0 ? null : TARGET.exec(text);
    if (!target) {
      if (place >= 0) open.splice(place, 1);
      return false;
    }
    const words = textOf(nodes.splice(open[place].index)).replace(/^!?\[/, "");
    open.length = place;
    nodes.push(link(target[1] ?? target[2], words));
    at += target[0].length;
    return true;
  };
  const emphasis = (/** @type {string} */ mark, /** @type {number} */ length) => {
    const [before, after] = [text[at - length - 1] ?? " ", text[at] ?? " "];
    const mayOpen = after.trim() && (mark !== "_" || !WORD.test(before));
    const mayClose = before.trim() && (mark !== "_" || !WORD.test(after));
    let count = length;
    while (mayClose && count) {
      const place = open.findLastIndex((opener) => opener.mark === mark &&
        !((opener.isBoth || mayOpen) && count % 3 && (opener.count + count) % 3 === 0)); // CommonMark's "rule of three"
      if (place < 0) break;
      const opener = open[place];
      const used = Math.min(2, opener.count, count);
      const inner = merged(nodes.splice(opener.index + 1));
      opener.count -= used;
      count -= used;
      nodes[opener.index] = mark.repeat(opener.count);
      nodes.push(h(mark === "~" ? "del" : used === 2 ? "strong" : "em", null, inner));
      open.length = place + (opener.count ? 1 : 0);
    }
    if (count && mayOpen) push(mark, count, mayClose !== "");
    else nodes.push(mark.repeat(count));
  };

  for (let found = token.exec(text); found; found = token.exec(text)) {
    const { 0: word, index: from } = found;
    nodes.push(text.slice(at, from));
    at = from + word.length;
    if (word[0] === "\\") {
      if (!/[!-/:-@[-`{-~\n]/.test(word[1])) at = from + 1;
      nodes.push(word[1] === "\n" ? h("br", null) : word.slice(at - from - 1, at - from));
    } else if (word[0] === "`") code(word.length) || nodes.push(word);
    else if (word.endsWith("[")) push(word);
    else if (word === "]") closed() || nodes.push(word);
    else if (/^<?h/i.test(word)) {
      const url = word.replace(/^<|>$/g, "");
      const end = word === url ? endOf(url) : url.length;
      if (word === url) at = from + end;
      nodes.push(link(url.slice(0, end)));
    } else if (word === "\n" || word[0] === "<") nodes.push(h("br", null)); // models mean it where they end a line
    else if (word[0] === "&") nodes.push(ENTITIES[word.toLowerCase()]);
    else if (word[0] === "~" ? word.length !== 2 : word.length > 4) nodes.push(word);
    else emphasis(word[0], word.length);
    token.lastIndex = at;
  }
  return merged([...nodes, text.slice(at)]);
}

/** Where an address ends: its sentence may go on. @param {string} url */
function endOf(url) {
  let end = url.length;
  const marks = url.includes("(") ? "?!.,:;*_~'" : "?!.,:;*_~')";
  while (marks.includes(url[end - 1])) end -= 1;
  return end;
}

/** @param {string} url @param {string} [words] @returns {Node} */
function link(url, words = url) {
  if (!SAFE.test(url)) return words === url ? url : `${words} (${url})`;
  return h("a", { href: url, title: url, target: "_blank", rel: "noopener noreferrer nofollow" }, words || url);
}

/** @param {any[]} nodes @returns {string} */
const textOf = (nodes) => nodes.map((node) => (typeof node === "string" ? node : textOf(node.children))).join("");

/** Neighbouring texts as one. @param {Node[]} nodes @returns {Node[]} */
function merged(nodes) {
  /** @type {Node[]} */
  const made = [];
  let text = "";
  for (const node of [...nodes, null]) {
    if (typeof node === "string") text += node;
    else {
      if (text) made.push(text);
      if (node) made.push(node);
      text = "";
    }
  }
  return made;
}
