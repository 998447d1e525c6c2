// @ts-check
// Addresses of the page: what stands behind "#/". Pure.
/** @import { Route } from "./types.mjs" */

/** The first view is the one that an unknown address shows. */
export const VIEWS = ["devices", "models", "launch", "deployments", "chat", "records", "settings"];

/** `#/records/12/14` is the view `records` with the parts `12` and `14`. @param {string} hash @returns {Route} */
export function parseRoute(hash) {
  const [view, ...parts] = hash.replace(/^#\/?/, "").split("/").map(decoded).filter(Boolean);
  return VIEWS.includes(view) ? { view, parts } : { view: VIEWS[0], parts: [] };
}

/** @param {string} view @param {...(string | number)} parts */
export const address = (view, ...parts) => `#/${[view, ...parts].map((part) => encodeURIComponent(part)).join("/")}`;

/** @param {string} part */
function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return ""; // a lone % is no part of ours
  }
}
