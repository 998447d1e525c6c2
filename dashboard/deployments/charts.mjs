// @ts-check
// Charts as small SVG. Pure. Colours come from the classes of the parts; words stand beside each chart.

import { h } from "../dom.mjs";

const WIDTH = 600;
const HEIGHT = 100;

/** @param {number} value */
const short = (value) => Number(value.toFixed(1));

/** Each value's share of their sum; nothing of nothing. @param {number[]} values */
export function shares(values) {
  const sum = values.reduce((total, value) => total + Math.max(0, value), 0);
  return values.map((value) => (sum > 0 ? Math.max(0, value) / sum : 0));
}

/** A round number at or above `value`, for the end of an axis: 1, 2 or 5 times a power of ten. @param {number} value */
export function roundUp(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return (([1, 2, 5, 10].find((step) => step * power >= value * 0.999)) ?? 10) * power;
}

/**
 * Layers on top of each other, as the points of polygons from left to right and back.
 * @param {number[][]} columns values of each moment, lowest layer first @param {number} most end of the axis
 */
export function layers(columns, most) {
  const count = Math.max(0, ...columns.map((column) => column.length));
  const sums = columns.map((column) => {
    let sum = 0;
    return [0, ...Array.from({ length: count }, (_, index) => (sum += column[index] ?? 0))];
  });
  const step = WIDTH / Math.max(1, columns.length - 1);
  const point = (/** @type {number} */ at, /** @type {number} */ layer) =>
    `${short(at * step)},${short(HEIGHT - (sums[at][layer] / most) * HEIGHT)}`;
  return Array.from({ length: count }, (_, layer) => {
    const places = columns.map((_, at) => at);
    return [...places.map((at) => point(at, layer + 1)), ...places.reverse().map((at) => point(at, layer))].join(" ");
  });
}

/** @param {string} label @param {string} kind @param {...any} children */
const chart = (label, kind, ...children) => h("svg", {
  class: `chart ${kind}`, viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": label,
}, children);

/** One bar of parts. @param {{value: number, kind: string, title: string}[]} parts @param {string} label */
export function stackedBar(parts, label) {
  let x = 0;
  const sizes = shares(parts.map(({ value }) => value));
  return chart(label, "stacked-bar", parts.map(({ kind, title }, index) => {
    const width = sizes[index] * WIDTH;
    x += width;
    return h("rect", { class: kind, x: short(x - width), y: 0, width: short(width), height: HEIGHT }, h("title", null, title));
  }));
}

/** How a stack of values went. @param {number[][]} columns @param {string[]} kinds @param {number} most @param {string} label */
export const stackedArea = (columns, kinds, most, label) =>
  chart(label, "stacked-area", layers(columns, most).map((points, index) => h("polygon", { class: kinds[index], points })));

/** How one value went, from the oldest to the newest. @param {number[]} values @param {number} most @param {string} label */
export function line(values, most, label) {
  const step = WIDTH / Math.max(1, values.length - 1);
  const points = values.map((value, at) => `${short(at * step)},${short(HEIGHT - (value / most) * HEIGHT)}`).join(" ");
  return chart(label, "line", h("polyline", { points, "vector-effect": "non-scaling-stroke" }));
}

/** A ring that empties as `left` goes from 1 to 0; its words stand beside it. @param {number} left */
export const ring = (left) => h("svg", { class: "ring", viewBox: "0 0 40 40", "aria-hidden": "true" },
  h("circle", { cx: 20, cy: 20, r: 17 }),
  left > 0 && h("circle", { class: "left", cx: 20, cy: 20, r: 17, pathLength: 100, "stroke-dasharray": `${short(left * 100)} 100` }));
