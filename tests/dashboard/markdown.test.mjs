// @ts-check
import assert from "node:assert/strict";
import { test } from "node:test";

import { markdown } from "../../dashboard/chat/markdown.mjs";

const FRAME = new Set(["type", "data-action", "data-key", "tabindex", "role", "aria-label"]);

/** A tree as a text that is easy to compare. @param {any} node @returns {string} */
function shown(node) {
  if (typeof node === "string") return node.replaceAll("<", "‹");
  if ("make" in node) return shown(node.make());
  const props = Object.entries(node.props).filter(([name, value]) => value && !FRAME.has(name)).map(([name, value]) => ` ${name}=${value}`);
  return `<${node.tag}${props.join("")}>${node.children.map(shown).join("")}</${node.tag}>`;
}
/** @param {string} text */
const blocks = (text) => markdown(text, { id: "a", copied: "", level: 4 });
/** @param {string} text */
const tree = (text) => blocks(text).map(shown).join("");
/** @param {string} url @param {string} words */
const a = (url, words) => `<a href=${url} title=${url} target=_blank rel=noopener noreferrer nofollow>${words}</a>`;
/** @param {string} text what a paragraph holds */
const p = (text) => tree(text).replace(/^<p>|<\/p>$/g, "");
/** @param {any} node @returns {any[]} every element below */
const all = (node) => (typeof node === "string" ? [] : "make" in node ? all(node.make()) : [node, ...node.children.flatMap(all)]);
/** @param {any} node @returns {number} */
const depth = (node) => (typeof node === "string" ? 0 : "make" in node ? depth(node.make()) : 1 + node.children.reduce((/** @type {number} */ most, /** @type {any} */ child) => Math.max(most, depth(child)), 0));

test("paragraphs, emphasis, strong, code, and breaks where the model ends a line", () => {
  assert.equal(tree("one\ntwo\n\nthree"), "<p>one<br></br>two</p><p>three</p>");
  assert.equal(p("a *b* **c** ***d*** _e_ ~~f~~ `g*h*`"), "a <em>b</em> <strong>c</strong> <em><strong>d</strong></em> <em>e</em> <del>f</del> <code>g*h*</code>");
  assert.equal(p("**a *b* c** **a*b**"), "<strong>a <em>b</em> c</strong> <strong>a*b</strong>");
  assert.equal(p("snake_case_name 5 * 3 * 2 \\*no\\* **open"), "snake_case_name 5 * 3 * 2 *no* **open");
  assert.equal(p("**中文：**文字"), "<strong>中文：</strong>文字");
  assert.equal(p("a\\\nb<br>c"), "a<br></br>b<br></br>c");
  assert.equal(p("`` a`b `` and `open"), "<code>a`b</code> and `open");
  assert.equal(p("1 &lt; 2 &amp;&amp; &#x41;"), "1 ‹ 2 && &#x41;");
});

test("headings begin at the level that they are given, and never skip one", () => {
  assert.equal(tree("### A\n##### B\n#### C\n# D #"), "<h4>A</h4><h5>B</h5><h5>C</h5><h4>D</h4>");
  assert.equal(tree("#no\n####### no"), "<p>#no<br></br>####### no</p>");
  assert.match(tree("# 1\n## 2\n### 3\n#### 4\n##### 5"), /<h6>3<\/h6><h6>4<\/h6><h6>5<\/h6>/);
  assert.equal(tree("> # in a quote"), "<blockquote><p><strong>in a quote</strong></p></blockquote>");
});

test("fenced code has its language, and a copy button with an id of its own", () => {
  const [block] = blocks("```py title\nif a:\n\n  *b*\n```\nafter").map((node) => /** @type {any} */ (node).make());
  const [row, pre] = block.children;
  assert.equal(row.children[0].children[0], "py");
  assert.equal(row.children[1].props["data-key"], pre.props.id);
  assert.deepEqual(pre.children, ["if a:\n\n  *b*"]);
  assert.match(tree("~~~\n```\n~~~\nx"), /<pre id=a-0>```<\/pre><\/div><p>x<\/p>/);
  assert.match(tree("```js\nhalf"), /<pre id=a-0>half<\/pre>/); // still streaming
});

test("lists nest, also where a model is not exact", () => {
  assert.equal(tree("- a\n  - b\n\n  more\n- c\nlazy"), "<ul><li><p>a</p><ul><li><p>b</p></li></ul><p>more</p></li><li><p>c<br></br>lazy</p></li></ul>");
  assert.equal(tree("3. a\n  - b\n4) c"), "<ol start=3><li><p>a</p><ul><li><p>b</p></li></ul></li><li><p>c</p></li></ol>");
  assert.equal(tree("- a\n\n\n- b"), "<ul><li><p>a</p></li><li><p>b</p></li></ul>");
  assert.match(tree("1. x\n   ```\n   code\n     more\n   ```"), /<li><p>x<\/p><div.*<pre id=a-0-0-1>code\n  more<\/pre>/s);
  assert.equal(tree("In\n1999. was"), "<p>In<br></br>1999. was</p>");
});

test("quotes, rules and tables", () => {
  assert.equal(tree("> a\n> > b\nc"), "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote><p>c</p>");
  assert.equal(tree("***\n- - -\n___"), "<hr></hr><hr></hr><hr></hr>");
  assert.equal(tree("| a | b\\|c |\n|:-:|--:|\n| 1 | **2** | 3 |\n| 4 |\nend"), "<div class=scroll><table><thead><tr><th class=middle>a</th><th class=figure>b|c</th></tr></thead>" +
    "<tbody><tr><td class=middle>1</td><td class=figure><strong>2</strong></td></tr><tr><td class=middle>4</td></tr></tbody></table></div><p>end</p>");
  for (const half of ["| a | b |", "| a | b |\n|", "| a | b |\n|--", "a | b\n---"]) assert.doesNotMatch(tree(half), /<table>/);
});

test("links go to http, https and mailto, in a page of their own, and say where", () => {
  assert.equal(p("[a *b*](https://x.y/z_(w) \"t\")"), a("https://x.y/z_(w)", "a b"));
  assert.equal(p("<https://q.r> or https://s.t/u_v_w. (https://x.y/)"), `${a("https://q.r", "https://q.r")} or ${a("https://s.t/u_v_w", "https://s.t/u_v_w")}. (${a("https://x.y/", "https://x.y/")})`);
  assert.equal(p("[m](mailto:a@b.c)"), a("mailto:a@b.c", "m"));
  assert.equal(p("[no](../file) [ref] [1]"), "no (../file) [ref] [1]");
});

test("images are links: nothing is fetched", () => {
  assert.equal(p("![a](https://x.y/p.png)"), a("https://x.y/p.png", "a"));
  assert.equal(p("[![a](https://x.y/p.png)](https://z.w)"), a("https://z.w", "a"));
  assert.equal(p("![](data:image/svg+xml,x)"), " (data:image/svg+xml,x)");
});

test("what is hostile stays text", () => {
  const hostile = [
    "<img src=x onerror=alert(1)>", "<script>alert(1)</script>", "<a href='javascript:alert(1)'>x</a>", "<svg/onload=alert(1)>", "<!-- x -->",
    "[x](javascript:alert(1))", "[x](JaVaScRiPt:alert(1))", "[x](java\tscript:alert(1))", "[x](\u0001javascript:alert(1))", "[x](javascript&#58;alert(1))",
    "[x](&#106;avascript:alert(1))", "[x](data:text/html,<script>alert(1)</script>)", "[x](vbscript:x)", "[x](file:///etc/passwd)", "[x](//evil.example)",
    "<javascript:alert(1)>", "![x](javascript:alert(1))", "[x]( javascript:alert(1) )", "[x](<javascript:alert(1)>)", "[x](https:javascript:alert(1))",
    "[a](javascript:[b](javascript:c))", "[x](blob:https://a/b)", "`<img onerror=alert(1)>`", "| <img onerror=a> |\n|--|\n| <script> |", "```<img>\n<script>\n```",
  ];
  for (const text of hostile) {
    for (const node of blocks(text).flatMap(all)) {
      assert.match(node.tag, /^(p|a|code|em|strong|div|pre|span|button|table|thead|tbody|tr|th|td)$/, text);
      for (const [name, value] of Object.entries(node.props)) {
        assert.doesNotMatch(name, /^(on|src|style)/, text);
        if (name === "href") assert.match(value, /^(https?:\/\/|mailto:)/, text);
      }
    }
    assert.doesNotMatch(tree(text), /<a /, text);
  }
  assert.equal(p("a\u0000b \u202egnp.exe"), "a\u0000b \u202egnp.exe");
});

test("the time is linear and the depth bounded, whatever comes", () => {
  const size = 200_000;
  const bombs = ["*", "[", "`", "_", "~~", ">", "- ", "1. ", "#", "|", "\\", "![", "<", "&", "(", "*a ", "a*", "**a* ", "[a](", "`a``b", "*a _b ~~c [", "> - ", "- a\n\n", "a|b\n", "|a",
    "```\n", "~~~\n> ", "\n", " ", "https://", "<https://a", "](", "[[a](https://b)", "&amp;", "\u202e", "\u0000", "a\n", "    - a\n"];
  const texts = [...bombs.map((bomb) => bomb.repeat(size / bomb.length)),
    "[".repeat(size / 2) + "](https://a)".repeat(size / 12), "![".repeat(size / 4) + "](https://a)".repeat(size / 12),
    Array.from({ length: 600 }, (_, index) => `${" ".repeat(index)}- x`).join("\n"), Array.from({ length: 600 }, (_, index) => "`".repeat(index + 1)).join(" "),
    `${"|a".repeat(500)}\n${"|-".repeat(500)}\n${"|\n".repeat(50_000)}`, `#${" ".repeat(size)}\u2028x`, `\`\`\`${" ".repeat(size)}\``, `- ${"- ".repeat(size / 2)}x`];
  for (const text of texts) {
    const began = process.cpuUsage();
    const made = blocks(text);
    for (const node of made) assert.ok(depth(node) < 80, text.slice(0, 10));
    // Of the processor, since the machine may have more to do; each takes about 0.1 s, and quadratic time minutes.
    assert.ok(process.cpuUsage(began).user < 5e6, `${JSON.stringify(text.slice(0, 10))} took ${process.cpuUsage(began).user} us`);
  }
});

test("every beginning of a text is fine, and only the last block changes as it grows", () => {
  const text = "# Head\n\nA *para* with `code` and [a link](https://x.y).\n\n- one\n  - two\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```js\nlet a;\n```\n> quote\n\nend **bold**";
  /** @type {any[]} */
  let before = [];
  for (let length = 1; length <= text.length; length += 1) {
    const now = /** @type {any[]} */ (blocks(text.slice(0, length)));
    now.map(shown);
    before.slice(0, -1).forEach((node, index) => assert.deepEqual(now[index].inputs, node.inputs, text.slice(0, length)));
    before = now;
  }
  assert.ok(before.length >= 6);
});

test("a copied block says so, and no other is made anew", () => {
  const text = "```\na\n```\n\n- x\n\n  ```\n  b\n  ```";
  const [plain, copied] = ["", "a-1-0-1"].map((key) => /** @type {any[]} */ (markdown(text, { id: "a", copied: key, level: 4 })));
  assert.deepEqual(copied[0].inputs, plain[0].inputs);
  assert.notDeepEqual(copied[1].inputs, plain[1].inputs);
  assert.match(shown(copied[1]), /Copied/);
  assert.doesNotMatch(shown(plain[1]), /Copied/);
});
