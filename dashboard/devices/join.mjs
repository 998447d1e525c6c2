// @ts-check
// The dialog that adds a device: a line to copy, its QR code, and the device as soon as it is there.
/** @import { Device, JoinCode, State } from "../types.mjs" */
/** @import { Join } from "./state.mjs" */

import { h } from "../dom.mjs";
import { age, bytes, milliseconds, platformName, plural, secondsSince } from "../format.mjs";
import { badge, copyable, dialogView, errorText, tabPanel, tabs } from "../parts.mjs";
import { ask } from "../state.mjs";

/** Platform, its tab, and what the line does there. @type {[string, string, string][]} */
const PLATFORMS = [
  ["termux", "Termux (Android)", "It installs Python and llama.cpp where they are missing, joins, and starts again at every boot. Termux comes from F-Droid."],
  ["macos", "macOS", "Paste it into Terminal. It fetches the agent and joins; it needs Python 3.11 or newer, and llama.cpp built with RPC."],
  ["linux", "Linux", "Paste it into a terminal. It fetches the agent and joins; it needs Python 3.11 or newer, and llama.cpp built with RPC."],
];

/** @param {State} state @param {number} now_ms */
export function joinDialog(state, now_ms) {
  /** @type {Join | null} */
  const join = state.views.devices.join;
  if (!join) return null;
  const { busy, error } = ask(state, "join");
  return dialogView("add-device", "Add a device", "devices/joined",
    tabs("join", "Platform", PLATFORMS.map(([name, words]) => [name, words]), join.tab, "devices/tab"),
    tabPanel("join", join.tab,
      join.code ? lineView(join.code, join.tab, state, now_ms) : busy && h("p", { class: "hint" }, "Making a join code…"),
      errorText(state, "join"),
      error && h("button", { type: "button", "data-action": "devices/code" }, "Try again")),
    h("footer", null, h("div", { role: "status" }, arrivals(join, state)),
      h("p", { class: "actions" },
        join.arrived.length > 0 && h("button", { type: "button", "data-action": "devices/another" }, "Add another"),
        h("button", { type: "button", "data-action": "close" }, "Close"))));
}

/** @param {JoinCode} code @param {string} platform @param {State} state @param {number} now_ms */
function lineView(code, platform, state, now_ms) {
  const line = code.lines.find((each) => each.platform === platform);
  if (!line) return null;
  const { command, qr } = line;
  const left_s = -(secondsSince(code.expires_at, now_ms) ?? -Infinity);
  if (left_s <= 0) {
    return [h("p", null, "The code has expired."), h("button", { type: "button", "data-action": "devices/code" }, "Make a new one")];
  }
  return [
    copyable(state, "join-command", "Run this on the device", command),
    h("div", { class: "scan" },
      qr.startsWith("data:image/") && h("img", { src: qr, width: 240, height: 240, alt: "QR code of this line: scan it with the device, then paste the line into its terminal" }),
      h("div", { class: "hint" },
        h("p", null, platform === "termux" ? "Or scan it with the phone, then copy the line into Termux." : "Or scan it, then paste the line."),
        h("p", null, PLATFORMS.find(([name]) => name === platform)?.[2]),
        h("p", null, `The code is valid for ${age(left_s)}.`))),
  ];
}

/** @param {Join} join @param {State} state */
function arrivals({ arrived }, { devices }) {
  const here = arrived.map((id) => devices[id]).filter(Boolean);
  if (!here.length) return h("p", { class: "message busy" }, badge("connecting", "Waiting for the device…"), " It appears here by itself.");
  return here.map((device) => h("div", { key: device.id, class: `message ${device.state === "ready" ? "good" : "warn"}` },
    h("p", { class: "row" }, h("strong", null, `${device.name} has joined`), badge(device.state)),
    h("p", { class: "hint" }, device.reason || figures(device))));
}

/** @param {Device} device */
export function figures({ facts, round_trip_ms }) {
  if (!facts) return "";
  return [
    platformName(facts.platform), plural(facts.cores, "core"), `${bytes(facts.memory_available_bytes)} of ${bytes(facts.memory_total_bytes)} free`,
    round_trip_ms != null && `round trip ${milliseconds(round_trip_ms)}`,
  ].filter(Boolean).join(" · ");
}
