// @ts-check
// What surrounds every view: name, navigation, connection, banner, live region, and the sign-in form.
/** @import { Deployment, Page, State, View } from "./types.mjs" */

import { h } from "./dom.mjs";
import { age, deploymentName, percent, sentence } from "./format.mjs";
import { badge, icon, tabAfter, tone } from "./parts.mjs";
import { address } from "./routes.mjs";
import { ask } from "./state.mjs";

/** @type {Record<string, string>} */
const ICONS = {
  devices: "M3 5h13v9H3zM7 18h5M19 9h2v10h-5v-2",
  models: "M12 3l8 4.5v9L12 21l-8-4.5v-9zM4 7.5l8 4.5 8-4.5M12 12v9",
  launch: "M7 4.5v15l12-7.5z",
  deployments: "M12 3l9 5-9 5-9-5zM3 12.5l9 5 9-5M3 17l9 5 9-5",
  chat: "M4 5h16v11H11l-4 4v-4H4z",
  records: "M9 6h11M9 12h11M9 18h11M4.5 6v.01M4.5 12v.01M4.5 18v.01",
  settings: "M4 7h8M17 7h3M14.5 4.5v5M4 17h3M12 17h8M9.5 14.5v5",
};
/** The worst first. */
const NEWS = ["failed", "backoff", "degraded", "starting", "fetching", "pending"];

/** @param {State} state @param {number} now_ms by the main host's clock @param {View[]} views */
export function frameView(state, now_ms, views) {
  const { connection, host } = state;
  const isSignedOut = connection === "signed_out";
  const view = views.find(({ name }) => name === state.route.view) ?? views[0];
  return h("div", { class: `shell ${isSignedOut ? "signed-out" : ""}` },
    h("div", { class: "rail" },
      h("header", { class: "top" },
        h("h1", null, h("img", { src: "/assets/icon.svg", alt: "", width: 24, height: 24 }), "Supervisor"),
        !isSignedOut && host && h("p", { class: "host" }, h("span", { class: "hidden-text" }, "Main host "), host.main_host),
        badge(connection, connection.replace("_", " ")),
        // Where the bar below has no room for seven.
        !isSignedOut && h("a", { class: "top-settings", href: address("settings"), "aria-current": view.name === "settings" && "page" },
          icon(ICONS.settings), h("span", { class: "hidden-text" }, "Settings"))),
      !isSignedOut && navigation(state, views)),
    h("section", { class: "banners", "aria-label": "Notices" }, banner(state, now_ms)),
    h("p", { class: "hidden-text", role: "status" }, state.announcement),
    h("main", { key: isSignedOut ? "sign-in" : view.name, class: connection === "disconnected" && "stale" },
      isSignedOut ? signIn(state) : view.render(state, now_ms)));
}

/** @param {State} state @param {View[]} views */
function navigation(state, views) {
  const news = worst(state);
  return h("nav", { "aria-label": "Views" }, views.map(({ name, title }) =>
    h("a", { key: name, href: address(name), "aria-current": name === state.route.view && "page" },
      icon(ICONS[name]), h("span", null, title),
      name === "deployments" && news && [
        h("span", { class: `dot ${tone(news.state)}` }), h("span", { class: "hidden-text" }, `, ${words(news)}`)])));
}

/** The deployment that most needs a look; none when all are well or stopped. @param {State} state */
function worst({ deployments }) {
  const all = Object.values(deployments).filter(({ state }) => NEWS.includes(state));
  return all.sort((a, b) => NEWS.indexOf(a.state) - NEWS.indexOf(b.state))[0] ?? null;
}

/** @param {Deployment} deployment */
function words(deployment) {
  const { state, loads } = deployment;
  const sum = (/** @type {"weight_bytes" | "loaded_bytes"} */ what) => (loads ?? []).reduce((all, load) => all + load[what], 0);
  const isLoading = state === "starting" && sum("weight_bytes") > 0;
  const now = isLoading ? `loading ${percent(sum("loaded_bytes"), sum("weight_bytes"))} %` : state === "backoff" ? "waits to try again" : state;
  return `${deploymentName(deployment)} ${now}`;
}

/** Title of the window: what matters most, else the view. @param {State} state */
export function titleOf(state) {
  const news = worst(state);
  const { view } = state.route;
  const text = state.connection === "signed_out" ? "Sign in" : state.connection === "disconnected" ? "Disconnected"
    : news ? words(news) : view[0].toUpperCase() + view.slice(1);
  return `${text} · Supervisor`;
}

/** @param {State} state @param {number} now_ms */
function banner({ connection, host, updated_ms }, now_ms) {
  if (connection === "disconnected") {
    const last = host ? `last update ${age((now_ms - updated_ms) / 1000)} ago` : "the main host does not answer";
    return h("p", { class: "banner bad" }, `Disconnected, ${last}. Trying again.`);
  }
  if (host?.problem) return h("p", { class: "banner bad" }, host.problem);
  const problem = host?.engine?.problem;
  return problem && h("p", { class: "banner warn" }, `The main host’s engine cannot serve: ${problem}`);
}

/** @param {State} state */
function signIn(state) {
  const { busy, error } = ask(state, "sign-in");
  return h("section", { class: "card sign-in", "aria-labelledby": "sign-in-title" },
    h("h2", { id: "sign-in-title", tabindex: -1 }, "Sign in"),
    h("form", { "data-submit": "sign-in" },
      h("p", { class: "hint" }, "Opened from elsewhere than the main host, this page needs a key. On the main host, ",
        h("code", null, "supervisor key"), " prints one."),
      // Password managers file a password under a name.
      h("input", { class: "hidden-text", name: "username", value: "supervisor", autocomplete: "username", readonly: true, tabindex: -1, "aria-hidden": "true" }),
      h("label", { for: "key" }, "Key"),
      h("input", { id: "key", name: "key", type: "password", autocomplete: "current-password", required: true, "data-autofocus": true }),
      error && h("p", { class: "error", role: "alert" }, sentence(error)),
      h("button", { class: "primary", disabled: busy }, busy ? "Signing in…" : "Sign in")));
}

/** @type {Record<string, (page: Page, element: any, data: DOMStringMap, event: any) => unknown>} */
export const frameActions = {
  async "sign-in"(page, form) {
    const key = String(new FormData(form).get("key")).trim();
    if (!await page.ask("sign-in", page.api.signIn(key))) return;
    form.reset();
    page.dispatch("signed_in");
    page.connect();
  },
  // Closing gives the focus back to what opened the dialog; its data-close then takes it out.
  "close": (_, element) => element.closest("dialog")?.close(),
  "tab-keys"(_, list, __, event) {
    const all = [...list.querySelectorAll("[role=tab]")];
    const next = tabAfter(event.key, all.indexOf(event.target), all.length);
    if (next < 0) return;
    event.preventDefault();
    all[next].focus();
    all[next].click();
  },
};
