// @ts-check
// A small virtual tree: views describe what should be there, `patch` changes what differs. Focus,
// open disclosures and scroll positions survive because unchanged elements are never replaced.

/**
 * @typedef {{tag: string, props: Record<string, any>, children: Child[]}} VNode
 * @typedef {VNode | string} Child
 */

/** Props of each element at its last patch. @type {WeakMap<Node, Record<string, any>>} */
const lastProps = new WeakMap();

/**
 * Describe an element. Props are attributes, save `key` (identity among its siblings) and `vars`
 * (CSS variables, set through the CSSOM, which a strict `style-src` permits).
 * @param {string} tag @param {Record<string, any> | null} [props] @param {...any} children
 * @returns {VNode}
 */
export function h(tag, props, ...children) {
  const present = children
    .flat(Infinity)
    .filter((child) => child !== null && child !== undefined && child !== false && child !== "")
    .map((child) => (typeof child === "object" ? child : String(child)));
  return { tag, props: props ?? {}, children: present };
}

/**
 * Make the children of `parent` equal to `children`.
 * @param {Element} parent @param {Child[]} children
 */
export function patch(parent, children) {
  const old = new Map(identified([...parent.childNodes], nodeKey, nodeTag));
  const wanted = identified(children, (child) => (typeof child === "string" ? undefined : child.props.key), tagOf);
  const nodes = wanted.map(([identity, child]) => update(old.get(identity), child));
  const staying = new Set(nodes);
  for (const node of [...parent.childNodes]) if (!staying.has(node)) node.remove();
  let next = parent.firstChild;
  for (const node of nodes) {
    if (node === next) next = next.nextSibling;
    else parent.insertBefore(node, next);
  }
}

/** @param {Node} node */
const nodeKey = (node) => lastProps.get(node)?.key;
/** @param {Node} node */
const nodeTag = (node) => (node.nodeType === Node.TEXT_NODE ? "#text" : node.nodeName.toLowerCase());
/** @param {Child} child */
const tagOf = (child) => (typeof child === "string" ? "#text" : child.tag);

/**
 * Pair each item with its identity: its tag and key, or its tag and place among the keyless.
 * @template T @param {T[]} items @param {(item: T) => any} key @param {(item: T) => string} tag
 * @returns {[string, T][]}
 */
function identified(items, key, tag) {
  /** @type {Record<string, number>} */
  const counts = {};
  return items.map((item) => {
    const name = tag(item);
    const own = key(item);
    if (own !== undefined) return [`${name}=${own}`, item];
    counts[name] = (counts[name] ?? 0) + 1;
    return [`${name}#${counts[name]}`, item];
  });
}

/** @param {Node | undefined} node @param {Child} child @returns {ChildNode} */
function update(node, child) {
  if (typeof child === "string") {
    const text = /** @type {Text} */ (node ?? document.createTextNode(child));
    if (text.data !== child) text.data = child;
    return text;
  }
  const element = /** @type {HTMLElement} */ (node ?? document.createElement(child.tag));
  setProps(element, lastProps.get(element) ?? {}, child.props);
  lastProps.set(element, child.props);
  patch(element, child.children);
  return element;
}

/**
 * Compares with the last props, not with the element: what the user opened or ticked stays so.
 * @param {HTMLElement} element @param {Record<string, any>} before @param {Record<string, any>} after
 */
function setProps(element, before, after) {
  for (const name of new Set([...Object.keys(before), ...Object.keys(after)])) {
    if (name === "key" || before[name] === after[name]) continue;
    const value = after[name];
    if (name === "vars") for (const [key, item] of Object.entries(value ?? {})) element.style.setProperty(key, String(item));
    else if (value === undefined || value === null || value === false) element.removeAttribute(name);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
}
