// @ts-check
import assert from "node:assert/strict";
import { test } from "node:test";

import { layers, line, ring, roundUp, shares, stackedArea, stackedBar } from "../../dashboard/deployments/charts.mjs";

/** @param {any} node @param {string} tag @returns {any[]} */
const all = (node, tag) => [...(node.tag === tag ? [node] : []), ...(node.children ?? []).flatMap((/** @type {any} */ child) => all(child, tag))];

test("shares sum to one, and nothing has none", () => {
  assert.deepEqual(shares([1, 3]), [0.25, 0.75]);
  assert.deepEqual(shares([1, -5]), [1, 0]);
  assert.deepEqual(shares([0, 0]), [0, 0]);
  assert.deepEqual(shares([]), []);
});

test("an axis ends at a round number", () => {
  for (const [value, end] of [[0, 1], [0.07, 0.1], [1, 1], [1.2, 2], [4.2, 5], [6.7, 10], [157, 200], [1000, 1000], [NaN, 1]]) {
    assert.ok(Math.abs(roundUp(value) - end) < 1e-9, `${value}: ${roundUp(value)}`);
  }
});

test("layers stand on each other from left to right", () => {
  assert.deepEqual(layers([[10, 30], [20, 20]], 100), ["0,90 600,80 600,100 0,100", "0,60 600,60 600,80 0,90"]);
});

test("a reading with fewer parts than the others leaves the rest flat", () => {
  assert.deepEqual(layers([[50], [25, 25]], 50), ["0,0 600,50 600,100 0,100", "0,0 600,0 600,50 0,0"]);
});

test("a stacked bar has a part for each value, as wide as its share", () => {
  const parts = [{ value: 30, kind: "host", title: "host" }, { value: 10, kind: "c0 wire", title: "wire" }];
  const rects = all(stackedBar(parts, "words"), "rect");
  assert.deepEqual(rects.map(({ props }) => [props.class, props.x, props.width]), [["host", 0, 450], ["c0 wire", 450, 150]]);
  assert.equal(stackedBar(parts, "words").props["aria-label"], "words");
});

test("charts say their figures in words", () => {
  for (const chart of [line([1, 2], 2, "words"), stackedArea([[1], [2]], ["c0"], 2, "words")]) {
    assert.deepEqual([chart.props.role, chart.props["aria-label"]], ["img", "words"]);
  }
});

test("a line goes from the oldest at the left to the newest at the right", () => {
  assert.equal(all(line([0, 5, 10], 10, ""), "polyline")[0].props.points, "0,100 300,50 600,0");
  assert.equal(all(line([5], 10, ""), "polyline")[0].props.points, "0,50");
});

test("a ring empties", () => {
  assert.equal(all(ring(0.34), "circle")[1].props["stroke-dasharray"], "34 100");
  assert.equal(all(ring(0), "circle").length, 1);
});
