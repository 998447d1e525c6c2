// @ts-check
// A small virtual tree: views say what should be there, `patch` changes what differs. Focus, open
// disclosures and scroll positions survive, because elements that stay are never replaced.

/**
 * @typedef {{tag: string, props: Record<string, any>, children: Child[]}} VNode
 * @typedef {{tag: "memo", props: {key: string}, inputs: unknown[], make: () => VNode}} Memo
 * @typedef {VNode | Memo | string} Child
 */

const SVG = "http://www.w3.org/2000/svg";

/** Props of each element at its last patch. @type {WeakMap<Node, Record<string, any>>} */
const lastProps = new WeakMap();
/** What the memo was made from that an element shows. @type {WeakMap<Node, {key: string, inputs: unknown[]}>} */
const lastMemo = new WeakMap();

/**
 * Describe an element; `svg` and what is in it are SVG. Props are attributes, save `key` (identity
 * among its siblings) and `vars` (CSS variables, set through the CSSOM, which a strict `style-src` permits).
 * @param {string} tag @param {Record<string, any> | null} [props] @param {...any} children
 * @returns {VNode}
 */
export function h(tag, props, ...children) {
  return { tag, props: props ?? {}, children: present(children) };
}

/**
 * An element that is made anew only when an input is another one than last time (`Object.is`).
 * @param {string} key identity among its siblings @param {unknown[]} inputs all that `make` depends on
 * @param {() => VNode} make @returns {Memo}
 */
export const memo = (key, inputs, make) => ({ tag: "memo", props: { key }, inputs, make });

/** @param {any} children @returns {Child[]} */
function present(children) {
  return [children].flat(Infinity)
    .filter((child) => child !== null && child !== undefined && child !== false && child !== "")
    .map((child) => (typeof child === "object" ? child : String(child)));
}

/** Make the content of `parent` equal to `content`. @param {Element} parent @param {any} content */
export function patch(parent, content) {
  const old = new Map(identified([...parent.childNodes], (node) => {
    const made = lastMemo.get(node);
    return made ? ["memo", made.key] : [node.nodeName.toLowerCase(), lastProps.get(node)?.key];
  }));
  const wanted = identified(present(content), (child) =>
    typeof child === "string" ? ["#text"] : [child.tag.toLowerCase(), child.props.key]);
  const nodes = wanted.map(([identity, child]) => update(parent, old.get(identity), child));
  const kept = new Set(nodes);
  for (const node of old.values()) if (!kept.has(node)) node.remove();
  let next = parent.firstChild;
  for (const node of nodes) {
    if (node === next) next = next.nextSibling;
    else parent.insertBefore(node, next);
  }
}

/**
 * Pair each item with its identity: its tag and key, or its tag and place among the keyless.
 * @template T @param {T[]} items @param {(item: T) => any[]} describe @returns {[string, T][]}
 */
function identified(items, describe) {
  /** @type {Record<string, number>} */
  const counts = {};
  return items.map((item) => {
    const [tag, key] = describe(item);
    if (key !== undefined) return [`${tag}=${key}`, item];
    counts[tag] = (counts[tag] ?? 0) + 1;
    return [`${tag}#${counts[tag]}`, item];
  });
}

/** @param {Element} parent @param {ChildNode | undefined} node @param {Child} child @returns {ChildNode} */
function update(parent, node, child) {
  if (typeof child === "string") {
    const text = node ?? document.createTextNode(child);
    if (text.textContent !== child) text.textContent = child;
    return text;
  }
  if ("make" in child) return updateMemo(parent, node, child);
  const element = /** @type {HTMLElement} */ (node ?? created(parent, child.tag));
  setProps(element, lastProps.get(element) ?? {}, child.props);
  lastProps.set(element, child.props);
  patch(element, child.children);
  return element;
}

/** @param {Element} parent @param {ChildNode | undefined} node @param {Memo} child @returns {ChildNode} */
function updateMemo(parent, node, { props: { key }, inputs, make }) {
  const before = node && lastMemo.get(node)?.inputs;
  if (node && before?.length === inputs.length && before.every((each, index) => Object.is(each, inputs[index]))) return node;
  const wanted = make();
  const isSame = node?.nodeName.toLowerCase() === wanted.tag.toLowerCase();
  const element = update(parent, isSame ? node : undefined, wanted);
  lastMemo.set(element, { key, inputs });
  return element;
}

/** @param {Element} parent @param {string} tag */
function created(parent, tag) {
  const isSvg = tag === "svg" || (parent.namespaceURI === SVG && parent.nodeName !== "foreignObject");
  return isSvg ? document.createElementNS(SVG, tag) : document.createElement(tag);
}

/**
 * Compares with the last props, not with the element: what the user opened, ticked or typed stays so.
 * @param {HTMLElement} element @param {Record<string, any>} before @param {Record<string, any>} after
 */
function setProps(element, before, { key, vars = {}, ...after }) {
  for (const [name, value] of Object.entries(vars)) {
    if (before.vars?.[name] !== value) element.style.setProperty(name, String(value));
  }
  for (const name of Object.keys({ ...before, ...after })) {
    const value = after[name] ?? false;
    if (name === "key" || name === "vars" || (before[name] ?? false) === value) continue;
    if (value === false) element.removeAttribute(name);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
}
