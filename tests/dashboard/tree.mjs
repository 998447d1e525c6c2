// @ts-check
// Looks into what a view describes, without a browser.

/** @param {any} content @returns {any[]} nodes and texts, memos made */
const nodes = (content) => [content].flat(Infinity).filter((each) => each !== null && each !== undefined && each !== false && each !== "")
  .map((each) => (each.make ? each.make() : each));

/** All elements of a tag, in their order. @param {any} content @param {string} tag @returns {any[]} */
export const all = (content, tag) => nodes(content).flatMap((each) =>
  (typeof each === "object" ? [...(each.tag === tag ? [each] : []), ...all(each.children, tag)] : []));

/** What can be read, elements apart by a space. @param {any} content @returns {string} */
export const text = (content) => nodes(content).map((each) => (typeof each === "object" ? text(each.children) : String(each)))
  .join(" ").replace(/\s+/g, " ").trim();

/** @param {any} node @param {string} name */
export const attribute = (node, name) => node.props[name];
