// @ts-check
import assert from "node:assert/strict";
import { test } from "node:test";

import { append, changed, emptyLog, KEPT, lost, overlap, severityOf, windowOf } from "../../dashboard/deployments/logs.mjs";

/** @param {string} process @param {string[]} lines @param {string} [file] */
const chunk = (process, lines, file = "1.log") => ({ process, file, text: lines.map((line) => `${line}\n`).join("") });
/** @param {...ReturnType<typeof chunk>} chunks */
const logOf = (...chunks) => chunks.reduce(append, emptyLog("x"));
/** @param {{text: string}[]} lines */
const texts = (lines) => lines.map(({ text }) => text);
/** @param {number} count @param {string} [word] */
const many = (count, word = "line") => Array.from({ length: count }, (_, index) => `${word} ${index}`);

test("lines of several processes stand in the order in which they came", () => {
  const log = logOf(chunk("llama-server", ["a", "b"]), chunk("link", ["c"]), chunk("llama-server", ["d"]));
  assert.deepEqual(log.lines.map(({ process, text }) => [process, text]),
    [["llama-server", "a"], ["llama-server", "b"], ["link", "c"], ["llama-server", "d"]]);
  assert.deepEqual(texts(log.matches), ["a", "b", "c", "d"]);
});

test("an empty line is a line; the end of a chunk is none", () => {
  assert.deepEqual(texts(logOf(chunk("link", ["a", "", "b"])).lines), ["a", "", "b"]);
  assert.deepEqual(logOf({ process: "link", file: "1.log", text: "" }).lines, []);
});

test("colours of a terminal and ends of Windows are left out", () => {
  assert.deepEqual(texts(append(emptyLog("x"), { process: "link", file: "f", text: "\x1b[31mred\x1b[0m\r\nplain\r\n" }).lines), ["red", "plain"]);
});

test("the oldest lines go when there are too many, and what is read stays in sight", () => {
  const paused = { ...changed(logOf(chunk("link", many(KEPT))), { follow: false }), top: 500 };
  const after = append(paused, chunk("link", many(100, "new")));
  assert.equal(after.lines.length, KEPT);
  assert.equal(after.matches.length, KEPT);
  assert.equal(after.lines[0].text, "line 100");
  assert.equal(after.matches.at(-1)?.text, "new 99");
  assert.deepEqual([after.top, after.gone], [400, 100]);
  assert.equal(after.matches[after.top], paused.matches[paused.top]);
});

test("with a filter, only the matching lines that went are counted", () => {
  const log = changed(logOf(chunk("link", ["error", ...many(KEPT - 1)])), { text: "error" });
  assert.deepEqual(texts(log.matches), ["error"]);
  const after = append(log, chunk("link", ["one", "another error"]));
  assert.deepEqual(texts(after.matches), ["another error"]);
  assert.equal(after.gone, 1);
});

test("a filter looks at the text in any case, at processes, and at what is severe", () => {
  const log = logOf(chunk("llama-server", ["Loading", "W slow answer"]), chunk("link", ["loaded", "connection refused"]));
  assert.deepEqual(texts(changed(log, { text: " LOAD " }).matches), ["Loading", "loaded"]);
  assert.deepEqual(texts(changed(log, { hidden: { link: true } }).matches), ["Loading", "W slow answer"]);
  assert.deepEqual(texts(changed(log, { isSevere: true }).matches), ["W slow answer", "connection refused"]);
  assert.deepEqual(texts(changed(log, { isSevere: true, hidden: { link: true }, text: "slow" }).matches), ["W slow answer"]);
  assert.deepEqual(changed(changed(log, { text: "load" }), { text: "" }).matches, log.lines);
});

test("new lines pass the filter without a look at the old ones", () => {
  const log = changed(logOf(chunk("link", ["a error"])), { text: "error" });
  const before = log.matches[0];
  const after = append(append(log, chunk("link", ["quiet"])), chunk("link", ["b error"]));
  assert.deepEqual(texts(after.matches), ["a error", "b error"]);
  assert.equal(after.matches[0], before);
  assert.equal(append(log, chunk("link", ["quiet"])).matches, log.matches);
});

test("another filter shows the newest lines", () => {
  const paused = changed(logOf(chunk("link", ["a"])), { follow: false });
  assert.equal(paused.follow, false);
  assert.equal(changed(paused, { text: "a" }).follow, true);
  assert.equal(changed(paused, { wrap: true }).follow, true);
});

test("another file of a process is another launch: its lines begin anew", () => {
  const log = append(logOf(chunk("link", ["old"]), chunk("mac", ["kept"])), chunk("link", ["new"], "2.log"));
  assert.deepEqual(texts(log.lines), ["kept", "new"]);
  assert.deepEqual(texts(log.matches), ["kept", "new"]);
  assert.equal(log.files.link, "2.log");
});

test("after a loss, lines that are here are not doubled", () => {
  const log = lost(logOf(chunk("link", ["a", "b", "c"]), chunk("mac", ["x"])));
  assert.equal(log.isLost, true);
  const again = append(log, chunk("link", ["b", "c", "d"]));
  assert.deepEqual(texts(again.lines), ["a", "b", "c", "x", "d"]);
  assert.equal(again.isLost, false);
  // Only the first chunk of each process repeats something.
  assert.deepEqual(texts(append(again, chunk("link", ["d"])).lines), ["a", "b", "c", "x", "d", "d"]);
  assert.deepEqual(texts(append(again, chunk("mac", ["x", "y"])).lines), ["a", "b", "c", "x", "d", "y"]);
});

test("after a loss during which another launch began, nothing is compared", () => {
  const log = append(lost(logOf(chunk("link", ["a"]))), chunk("link", ["a", "b"], "2.log"));
  assert.deepEqual(texts(log.lines), ["a", "b"]);
});

test("what is here already ends with the last line seen", () => {
  assert.equal(overlap([], ["a"]), 0);
  assert.equal(overlap(["a", "b"], ["c", "d"]), 0);
  assert.equal(overlap(["a", "b"], ["a", "b"]), 2);
  assert.equal(overlap(["z", "a", "b"], ["a", "b", "c"]), 2);
  assert.equal(overlap(["b", "c"], ["a", "b", "c", "d"]), 3); // older ones were dropped here
  assert.equal(overlap(["a", "b"], ["x", "b"]), 0);
});

test("severity of a line", () => {
  for (const line of ["0.01.234 E srv: no", "ggml_backend: failed to allocate", "error: x", "terminated: out of memory"]) {
    assert.equal(severityOf(line), "bad", line);
  }
  for (const line of ["249.775 W ggml-rpc: slow answer", "warning: x"]) assert.equal(severityOf(line), "warn", line);
  for (const line of ["I main: ready", "layer 3 of W x E", "terrorist", "0 errors_total"]) assert.equal(severityOf(line), "", line);
});

test("the window holds what is in sight and some around it", () => {
  assert.deepEqual(windowOf(1000, 100, 30, 10), { from: 90, to: 140 });
  assert.deepEqual(windowOf(1000, 0, 30, 10), { from: 0, to: 40 });
  assert.deepEqual(windowOf(1000, 1000, 30, 10), { from: 960, to: 1000 });
  assert.deepEqual(windowOf(5, 5, 30, 10), { from: 0, to: 5 });
  assert.deepEqual(windowOf(0, 0, 30, 10), { from: 0, to: 0 });
  assert.deepEqual(windowOf(20, 900, 30, 10), { from: 0, to: 20 }); // fewer match now
});
