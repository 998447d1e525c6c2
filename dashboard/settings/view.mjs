// @ts-check
/** @import { State } from "../types.mjs" */
/** @import { Key, Setting, Settings } from "./state.mjs" */

import { h, memo } from "../dom.mjs";
import { age, engineWords, secondsSince } from "../format.mjs";
import { copyable, dialogView, errorText, factList, viewHead } from "../parts.mjs";
import { ask } from "../state.mjs";
import { enginesCard, useDialog } from "./engines.mjs";
import { found, limitsText, may, usageText, valueText } from "./state.mjs";

/** @type {[string, string][]} */
const SCOPES = [
  ["inference", "asks models through /v1; all that a chat tool needs"],
  ["read", "sees this page, /metrics and reports, and changes nothing"],
  ["admin", "launches, stops, adds devices, makes keys: all that you can"],
];

/** @param {State} state @param {number} now_ms */
export function render(state, now_ms) {
  /** @type {Settings} */
  const own = state.views.settings;
  return h("div", { class: "settings stack" },
    viewHead("Settings"),
    h("div", { class: "cards" }, whoCard(state), addressCard(state), hostCard(state)),
    enginesCard(own, state, now_ms),
    keysCard(own, state, now_ms),
    settingsCard(own, state),
    own.dialog === "new" && (own.made ? madeDialog(own.made, state) : newKeyDialog(state)),
    own.asking && useDialog(own.asking, state),
    own.dialog === "revoke" && revokeDialog(own.revoking, state));
}

/** @param {string} title @param {...any} content */
const card = (title, ...content) => h("section", { class: "card stack" }, h("h3", null, title), content);

/** @param {string} action @param {any} words @param {object} [more] */
const button = (action, words, more) => h("button", { type: "button", "data-action": action, ...more }, words);

/** @param {State} state */
function whoCard(state) {
  const { who } = state;
  const follows = h("p", { class: "hint" }, "Light or dark: this page follows your system.");
  if (!who) return card("You", h("p", { class: "hint" }, "Not known yet."), follows);
  return card("You",
    h("p", null, who.is_keyless ? "You are on the main host, where no key is needed."
      : ["Signed in with the key ", h("strong", null, who.caller), "."]),
    factList([["May", who.scopes.join(", ")]]),
    !who.is_keyless && h("p", null, button("settings/sign-out", "Sign out", { disabled: ask(state, "sign-out").busy })),
    errorText(state, "sign-out"),
    follows);
}

/** @param {State} state */
const addressCard = (state) => card("Addresses", state.host && [
  copyable(state, "address-page", "This dashboard", state.host.url),
  copyable(state, "address-api", "For OpenAI’s clients", `${state.host.url}/v1`),
  isOfThisHostOnly(state.host.url) && h("p", { class: "hint" }, "Only this machine reaches them. For your phone and others, start the supervisor with ",
    h("code", null, "--host"), " and an address of this machine; they sign in with a key.")]);

/** @param {string} url */
const isOfThisHostOnly = (url) => /^https?:\/\/(127\.|localhost\b|\[::1\])/.test(url);

/** @param {State} state */
const hostCard = ({ host }) => card("Main host", host && [
  factList([
    ["Name", host.main_host], ["Supervisor", host.version],
    ["Engine", engineWords(host.engine)], ["Program", host.engine?.llama_server],
  ]),
  host.engine?.problem && h("p", { class: "error" }, host.engine.problem),
  h("p", { class: "row start" }, h("a", { href: "/metrics" }, "Metrics for Prometheus"),
    h("a", { href: "/api/report", download: true }, "Download a report"))]);

// Keys

/** @param {Settings} own @param {State} state @param {number} now_ms */
function keysCard({ keys }, state, now_ms) {
  const isAdmin = may(state, "admin");
  const head = ["Name", "Begins with", "Good for", "Limits", "Used for", "Last used"].map((name) => h("th", { scope: "col" }, name));
  return h("section", { class: "card stack" },
    h("div", { class: "row" }, h("h3", null, "Keys"), isAdmin && button("settings/dialog", "Make a key", { "data-dialog": "new" })),
    h("p", { class: "hint" }, "Who calls from another machine needs a key. It is shown once, when it is made."),
    state.who && !isAdmin && h("p", null, "Your key cannot see or make keys: that takes the scope admin."),
    errorText(state, "keys"),
    keys?.length === 0 && h("p", null, "There is none yet."),
    keys !== null && keys.length > 0 && h("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": "Keys" }, h("table", null,
      h("thead", null, h("tr", null, head, h("td", null))),
      h("tbody", null, keys.map((key) => keyRow(key, secondsSince(key.last_used_at, now_ms)))))));
}

/** @param {Key} key @param {number | null} used_s */
function keyRow(key, used_s) {
  const { name, shown, scopes } = key;
  const used = used_s === null ? "never" : `${age(used_s)} ago`;
  return memo(name, [key, used], () => h("tr", null,
    h("th", { scope: "row" }, name), h("td", { class: "mono" }, `${shown.replace("…", "")}…`),
    [scopes.join(", "), limitsText(key), usageText(key), used].map((cell) => h("td", null, cell)),
    h("td", null, button("settings/dialog", ["Revoke", h("span", { class: "hidden-text" }, ` ${name}`)],
      { class: "danger", "data-dialog": "revoke", "data-name": name }))));
}

/** @param {State} state */
function newKeyDialog(state) {
  const field = (/** @type {string} */ name, /** @type {string} */ label, /** @type {object} */ more) => h("div", { class: "field" },
    h("label", { for: `key-${name}` }, label), h("input", { id: `key-${name}`, name, ...more }));
  const limit = { type: "number", min: 1, placeholder: "no limit" };
  return dialogView("new-key", "Make a key", "settings/closed", h("form", { class: "stack", "data-submit": "settings/make" },
    field("name", "Name", { required: true, pattern: "[A-Za-z0-9][A-Za-z0-9_.\\-]{0,62}", autocomplete: "off", "data-autofocus": true,
      title: "letters, digits, dots, dashes", placeholder: "who or what uses it" }),
    h("fieldset", null, h("legend", null, "Good for"), SCOPES.map(([scope, words]) => h("label", { key: scope, class: "choice" },
      h("input", { type: "checkbox", name: "scopes", value: scope, checked: scope === "inference" }),
      h("span", null, h("strong", null, scope), ` ${words}`)))),
    h("div", { class: "limits" },
      field("requests_per_minute", "Requests a minute", limit), field("concurrent", "At a time", limit),
      field("wait_s", "Waits, in seconds", { ...limit, min: 0, step: "any" })),
    errorText(state, "make-key"),
    h("div", { class: "actions" }, button("close", "Cancel"),
      h("button", { key: "make", class: "primary", disabled: ask(state, "make-key").busy }, "Make it"))));
}

/** @param {{name: string, text: string}} made @param {State} state */
const madeDialog = ({ name, text }, state) => dialogView("new-key", `Key ${name}`, "settings/closed",
  h("p", { class: "message warn" }, "Copy it now: nobody can show it again."),
  copyable(state, "key-text", "Key", text),
  copyable(state, "key-env", "For a shell", `export OPENAI_BASE_URL=${state.host?.url}/v1 OPENAI_API_KEY=${text}`),
  h("div", { class: "actions" }, button("close", "Done", { key: "done", "data-autofocus": true })));

/** @param {string} name @param {State} state */
const revokeDialog = (name, state) => dialogView("revoke", `Revoke ${name}?`, "settings/closed",
  h("p", null, "Whoever uses this key is refused from now on. Requests that have begun go on to their end."),
  errorText(state, "revoke-key"),
  h("div", { class: "actions" }, button("close", "Keep it", { "data-autofocus": true }),
    button("settings/revoke", "Revoke", { class: "danger", "data-name": name, disabled: ask(state, "revoke-key").busy })));

// Settings

/** @param {Settings} own @param {State} state */
function settingsCard({ all, filter, path }, state) {
  const title = "Settings in force";
  if (!all) return card(title, errorText(state, "settings") || h("p", { class: "hint" }, "Waiting for the main host."));
  return memo("settings", [all, filter, path], () => {
    const { changed, others } = found(all, filter);
    return card(title,
      h("p", { class: "hint" }, "They are changed in ", h("code", null, path || "supervisor.toml"),
        " or by environment variables, and are read when the supervisor starts."),
      h("div", { class: "field" }, h("label", { for: "settings-filter" }, "Find"), h("input", {
        id: "settings-filter", type: "search", value: filter, "data-input": "settings/filter", placeholder: `one of ${all.length}` })),
      changed.length > 0 && [h("h4", { key: "changed" }, "Not as by default"), valuesTable("Not as by default", changed)],
      others.length > 0 && h("details", { key: filter ? "found" : "others", open: filter !== "" },
        h("summary", null, `As by default (${others.length})`), valuesTable("As by default", others)),
      !changed.length && !others.length && h("p", null, "No setting has these words."));
  });
}

/** @param {string} name @param {Setting[]} rows */
const valuesTable = (name, rows) => h("table", { class: "values", "aria-label": name }, h("tbody", null,
  rows.map((row) => h("tr", { key: row.name },
    h("th", { scope: "row" }, h("code", null, row.name), h("small", null, row.description)),
    h("td", null, h("code", null, valueText(row.value)),
      row.source !== "default" && h("small", null, `from the ${row.source}; by default ${valueText(row.default)}`))))));
