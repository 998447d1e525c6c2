// @ts-check
// The main host and its devices: a picture of a few, a list of many.
/** @import { Device, Facts, State, Traffic } from "../types.mjs" */
/** @import { Seen } from "./figures.mjs" */

import { h, memo } from "../dom.mjs";
import { bytes, deploymentName, engineWords, memoryParts, platformName, plural, sentence } from "../format.mjs";
import { badge, dialogView, factList, icon, memoryView, tone, viewHead } from "../parts.mjs";
import { address } from "../routes.mjs";
import { ask } from "../state.mjs";
import { detail, isBesideCpu } from "./detail.mjs";
import {
  condition, conditions, coresWords, current, derateWords, filtered, isInstalling, isOtherEngine, isWarm, seen, sortedDevices,
  wireInUse, wireWidth, wireWords,
} from "./figures.mjs";
import { checkAllView } from "./findings.mjs";
import { joinDialog } from "./join.mjs";
import { wireKind, wireWarnings } from "./wires.mjs";

const MOST_PICTURED = 12;

/** @param {State} state @param {number} now_ms */
export function devicesView(state, now_ms) {
  const all = sortedDevices(state);
  return [
    viewHead("Devices", all.length > 0 && h("p", { class: "actions" }, checkButton(state), addButton())),
    all.length > 0 && checkAllView(state, now_ms),
    !state.host ? h("p", { class: "hint" }, "Waiting for the main host.")
      : !all.length ? empty()
      : all.length > MOST_PICTURED ? many(all, state, now_ms) : picture(all, state, now_ms),
    joinDialog(state, now_ms),
    removeDialog(state),
  ];
}

const addButton = () => h("button", { class: "primary", type: "button", "data-action": "devices/add" }, icon("M12 5v14M5 12h14"), "Add a device");

/** @param {State} state */
const checkButton = (state) => h("button", { type: "button", disabled: ask(state, "check all").busy, "data-action": "devices/check" }, "Check everything");

const empty = () => h("section", { class: "empty first-device" },
  h("h3", null, "No device has joined yet"),
  h("p", null, "A phone, a Mac or a PC lends its memory and speed to the models that run here. It joins with one line that you copy to it."),
  addButton());

/** One item for each device, made anew only when what it shows is another. @param {Device[]} devices @param {State} state @param {number} now_ms @param {(it: Seen) => any} item */
const items = (devices, state, now_ms, item) => devices.map((device) => {
  const it = seen(device, state, now_ms);
  return memo(device.id, Object.values(it), () => h("li", null, item(it)));
});

/** @param {Device[]} all @param {State} state @param {number} now_ms */
const picture = (all, state, now_ms) => h("div", { class: "picture" }, hostCard(all, state),
  h("ul", { class: "cabled", "aria-label": "Devices" }, items(all, state, now_ms, (it) => [cable(it), card(it)])));

/** @param {Device[]} all @param {State} state */
function hostCard(all, { host, deployments, traffic }) {
  const ready = all.filter((device) => condition(device) === "ready");
  return h("section", { class: "card host-card", "aria-labelledby": "host-name" },
    h("div", null, h("h3", { id: "host-name" }, host?.main_host), h("p", { class: "hint" }, "Main host")),
    factList([
      ["Engine", engineWords(host?.engine)],
      ["Devices", `${ready.length} of ${all.length} ready`],
      ["Memory free", bytes(ready.reduce((sum, { facts }) => sum + (facts?.memory_available_bytes ?? 0), 0))],
    ]),
    h("ul", { "aria-label": "Deployments" }, Object.values(deployments).map((deployment) =>
      h("li", { key: deployment.id }, h("p", { class: "row" }, link(deploymentName(deployment)), badge(deployment.state)), busy(traffic[deployment.id])))));
}

/** @param {Traffic | undefined} traffic */
const busy = (traffic) => traffic && traffic.active + traffic.waiting > 0 && h("p", { class: "hint" },
  `${traffic.active} of ${plural(traffic.slots, "slot")} busy${traffic.waiting ? `, ${traffic.waiting} waiting` : ""}`);

/** @param {string} name */
const link = (name) => h("a", { href: address("deployments", name) }, name);

/** The line from the main host, with what is known of the network. @param {Seen} it */
function cable({ device, user }) {
  const { trip, rate } = wireWords(device);
  const wire = wireInUse(device);
  const kind = !["ready", "parked"].includes(device.state) && !isInstalling(device) ? "broken" : user && "used";
  return h("p", { class: `cable ${kind} ${tone(device.state)}`, vars: { "--wire": `${wireWidth(wire?.up_bytes_per_s ?? device.speed?.up_bytes_per_s)}px` } },
    h("span", null, h("span", { class: "hidden-text" }, "Network: "), trip), h("span", null, rate),
    wire && rate !== "same host" && h("span", null, wireKind(wire)));
}

/** @param {Seen} it */
function card(it) {
  const { device: { id, name, state }, doing, user } = it;
  const isLinked = user && doing.endsWith(user);
  return h("article", { class: "card device", "aria-labelledby": `device-${id}` },
    h("header", { class: "row" }, h("h3", { id: `device-${id}` }, name), badge(condition(it.device)),
      h("p", { class: "doing" }, isLinked ? [doing.slice(0, -user.length), link(user)] : doing || (state === "ready" && "idle"))),
    news(it), memory(it.device),
    h("details", { "data-toggle": "devices/open", "data-id": id }, h("summary", null, chips(it), h("span", { class: "more" }, "Details")), it.isOpen && detail(it)));
}

/** @param {Device} device */
function memory(device) {
  const facts = current(device);
  return facts && memoryView(facts, device.rpc_server?.resident_bytes);
}

/** What is wrong, and what goes on: reason, measurement, refusal. @param {Seen} it */
function news({ device, step, asked, check, checkAsked }) {
  const { id, state, reason, excluded, used_by, rpc_server } = device;
  const derated = state === "ready" && derateWords(device.facts);
  return [
    state === "parked" ? h("p", { key: "reason", class: "reason off" }, `Takes no work now: ${sentence(reason, reason.split(" ")[0]) || "it comes back by itself."}`)
      : condition(device) === "installing" ? null
      : state !== "ready" ? h("p", { key: "reason", class: `reason ${tone(state)}` }, reason || "No reason given.")
      : rpc_server?.state === "failed" ? h("p", { key: "reason", class: "reason bad" }, `Its worker failed: ${rpc_server.detail || "no detail given"}`)
      : excluded && h("p", { key: "reason", class: "hint" }, used_by ? "Excluded: no new plan uses it. What runs on it goes on." : "Excluded: no plan uses it."),
    derated && h("p", { key: "derated", class: "reason warn" }, derated, "."),
    engineNews(device),
    ["unusable", "incompatible", "suspect", "lost"].includes(state) && !check && !isInstalling(device) && h("p", { key: "doctor" },
      h("button", { type: "button", disabled: checkAsked.busy, "data-action": "devices/check", "data-id": id }, "Check this device")),
    step && h("div", { key: "step" }, h("p", { id: `step-${id}`, class: "hint" }, `Measuring${step.device && ` ${step.device}`}: ${step.step}. Keep this page open.`),
      h("progress", { max: 1, value: step.part, "aria-labelledby": `step-${id}` })),
    asked.error && h("p", { key: "error", class: "error", role: "alert" }, asked.error),
  ];
}

/** An engine that it gets from the main host: how far it is, or why it is not there. @param {Device} device */
function engineNews({ id, state: condition, reason, engine_install, facts }) {
  if (!engine_install) return null;
  const { build, state, done_bytes, total_bytes, detail } = engine_install;
  if (state === "failed") return !(condition !== "ready" && detail && reason.includes(detail)) && h("p", { key: "engine", class: "reason bad" }, `Engine ${build} could not be installed: ${detail || "no detail given"}`);
  if (state === "ready") {
    const isUsed = [facts?.engine?.release, facts?.engine?.build].includes(build);
    return !isUsed && h("p", { key: "engine", class: "hint" }, `Engine ${build} is ready here, beside the one in use.`);
  }
  const words = state === "proving" ? "is there, and is being tried out" : `comes from the main host: ${bytes(done_bytes)} of ${bytes(total_bytes)}`;
  return h("div", { key: "engine", class: "engine-news" }, h("p", { id: `engine-${id}`, class: "hint" }, `Engine ${build} ${words}.`),
    h("progress", { max: total_bytes || 1, value: state === "proving" ? total_bytes || 1 : done_bytes, "aria-labelledby": `engine-${id}` }));
}

/** @param {Seen} it */
function chips({ device, engine }) {
  const facts = current(device);
  if (!facts) return null;
  const { temperature_c, battery_percent, battery_charging } = facts;
  const warm = isWarm(facts);
  const charging = battery_charging == null ? "" : battery_charging ? ", charging" : ", on battery";
  const all = [
    `${platformName(facts.platform)} · ${coresWords(facts)}`,
    ...facts.ggml_devices.filter(isBesideCpu).map(({ name, free_bytes }) => `${name} ${bytes(free_bytes)} free`),
    battery_percent != null && [battery(battery_percent), `${Math.round(battery_percent)} %${charging}`],
    temperature_c != null && h("span", { class: warm && "reason warn" }, `${Math.round(temperature_c)} °C${warm ? ", hot" : ""}`),
    isOtherEngine(facts.engine, engine) && h("span", { class: "reason warn" }, "another engine build"),
    wireWarnings(device) > 0 && h("span", { class: "reason warn" }, plural(wireWarnings(device), "network warning")),
    device.speed?.stale && "measure again",
  ];
  return all.map((words, index) => words && h("span", { key: index, class: "chip" }, words));
}

/** @param {number} charge percent */
const battery = (charge) => h("svg", { class: "battery", viewBox: "0 0 24 12", "aria-hidden": "true" },
  h("path", { d: "M2 1h17v10H2zM22 4v4" }), h("path", { class: "charge", d: `M4 3h${(13 * Math.min(100, charge)) / 100}v6H4z` }));

/** @param {Device[]} all @param {State} state @param {number} now_ms */
function many(all, state, now_ms) {
  const { filter, only } = state.views.devices;
  const shown = filtered(all, filter, only);
  return [
    h("div", { class: "row start filter" },
      h("input", { type: "search", "aria-label": "Filter devices", placeholder: "Name, platform or deployment", "data-input": "devices/filter" }),
      h("div", { class: "segments", role: "group", "aria-label": "State" }, conditions(all).map(([word, count]) =>
        h("button", { key: word, type: "button", "data-action": "devices/only", "data-word": word, "aria-pressed": String(only === word) }, `${word} ${count}`)))),
    h("p", { class: "hint" }, `${shown.length} of ${plural(all.length, "device")}`),
    h("ul", { class: "card device-list", "aria-label": "Devices" }, items(shown, state, now_ms, line)),
  ];
}

/** @param {Seen} it */
function line(it) {
  const { device, doing, isOpen } = it;
  const { id, name, state } = device;
  const facts = current(device);
  const { trip, rate } = wireWords(device);
  return h("details", { "data-toggle": "devices/open", "data-id": id },
    h("summary", null, h("h3", null, name), badge(condition(device)), h("span", { class: "doing" }, doing || (state === "ready" ? "idle" : device.reason)),
      h("span", { class: "mini" }, facts && [miniBar(device, facts), `${bytes(facts.memory_available_bytes)} free`]),
      h("span", { class: "figure" }, [trip, rate].filter(Boolean).join(" · "))),
    isOpen && [news(it), memory(device), h("p", { class: "chips" }, chips(it)), detail(it)]);
}

/** @param {Device} device @param {Facts} facts */
function miniBar({ rpc_server }, facts) {
  const { free, ours, others } = memoryParts(facts, rpc_server?.resident_bytes);
  return h("span", { class: "bar", "aria-hidden": "true" }, Object.entries({ ours, others, free }).map(([kind, size]) => h("span", { class: kind, vars: { "--part": size } })));
}

/** @param {State} state */
function removeDialog(state) {
  const device = state.devices[state.views.devices.removing];
  if (!device) return null;
  const { user } = seen(device, state, 0);
  return dialogView("remove-device", `Remove ${device.name}?`, "devices/remove-closed",
    h("p", null, "It is forgotten with what was measured of it, and its certificate is refused. To use it again, join it with a new line."),
    user && h("p", { class: "message warn" }, `${user} uses it: that is launched again without it, if it can do without.`),
    h("p", { class: "actions" }, h("button", { type: "button", "data-action": "close" }, "Cancel"),
      h("button", { type: "button", class: "danger", "data-action": "devices/remove-now", "data-id": device.id }, "Remove")));
}
