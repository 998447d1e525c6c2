// @ts-check
// The dialog that adds a device: a line to copy, its QR code, and the device as soon as it is there.
/** @import { Device, JoinCode, State } from "../types.mjs" */
/** @import { Join } from "./state.mjs" */

import { h } from "../dom.mjs";
import { age, bytes, milliseconds, platformName, secondsSince } from "../format.mjs";
import { badge, copyable, dialogView, errorText, tabPanel, tabs } from "../parts.mjs";
import { ask } from "../state.mjs";
import { condition, coresWords } from "./figures.mjs";

const service = ["With ", h("code", null, "--service"), " at the end of the line it also starts at every boot, as ", h("code", null, "agent.pyz service install"), " has it."];

/** Platform, its tab, what the line does there, and how it starts at boot. @type {[string, string, string, any][]} */
const PLATFORMS = [
  ["termux", "Termux (Android)", "It installs what is missing, joins, and gets its engine from this main host by itself. Termux comes from F-Droid.",
    "At boot it starts again if the app Termux:Boot is there and was opened once."],
  ["macos", "macOS", "Paste it into Terminal. It installs Python where that is missing, and gets its engine from this main host by itself.", service],
  ["linux", "Linux", "Paste it into a terminal. It installs Python where that is missing, and gets its engine from this main host by itself.", service],
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
  const [, , does, boot] = PLATFORMS.find(([name]) => name === platform) ?? PLATFORMS[0];
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
        h("p", null, does), h("p", null, boot),
        h("p", null, `The code is valid for ${age(left_s)}.`))),
  ];
}

/** @param {Join} join @param {State} state */
function arrivals({ arrived }, { devices }) {
  const here = arrived.map((id) => devices[id]).filter(Boolean);
  if (!here.length) return h("p", { class: "message busy" }, badge("connecting", "Waiting for the device…"), " It appears here by itself.");
  return here.map((device) => {
    const word = condition(device);
    const { build = "" } = device.engine_install ?? {};
    return h("div", { key: device.id, class: `message ${word === "ready" ? "good" : word === "installing" ? "busy" : "warn"}` },
      h("p", { class: "row" }, h("strong", null, `${device.name} has joined`), badge(word)),
      h("p", { class: "hint" }, word === "installing" ? `Its engine ${build} comes from the main host by itself.` : device.reason || figures(device)));
  });
}

/** @param {Device} device */
export function figures({ facts, round_trip_ms }) {
  if (!facts) return "";
  return [
    platformName(facts.platform), coresWords(facts), `${bytes(facts.memory_available_bytes)} of ${bytes(facts.memory_total_bytes)} free`,
    round_trip_ms != null && `round trip ${milliseconds(round_trip_ms)}`,
  ].filter(Boolean).join(" · ");
}
