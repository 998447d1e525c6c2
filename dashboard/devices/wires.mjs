// @ts-check
// The networks between the main host and a device: which one carries tensors, what the others are
// good for, and what is odd about them.
/** @import { Device, Wire } from "../types.mjs" */

import { h } from "../dom.mjs";
import { bitRate, milliseconds, plural, sentence } from "../format.mjs";
import { wireInUse } from "./figures.mjs";
import { findingList } from "./findings.mjs";

/** @type {Record<string, string>} */
const KINDS = {
  ethernet: "Ethernet", wifi: "Wi-Fi", thunderbolt: "Thunderbolt", bridge: "Bridge", usb: "USB", cellular: "Mobile network",
  vpn: "VPN", loopback: "Same host",
};

/** What people call it. @param {Wire} wire */
export const wireKind = (wire) => KINDS[wire.kind] ?? (wire.interface || "Network");

/** @param {Wire} wire */
export function wireFigures({ up_bytes_per_s, round_trip_ms }) {
  const known = [up_bytes_per_s && bitRate(up_bytes_per_s), round_trip_ms != null && milliseconds(round_trip_ms)];
  return known.filter(Boolean).join(", ") || "not measured";
}

/** How many of the findings about its networks ask for a look. @param {Device} device */
export const wireWarnings = ({ facts }) => (facts?.wires ?? []).filter(({ verdict }) => verdict === "warning" || verdict === "blocks").length;

/** @param {Wire} wire @param {...any} more */
const row = (wire, ...more) => h("div", null,
  h("p", { class: "row start" }, h("span", { class: "chip" }, wireKind(wire)), h("span", { class: "wire-figures" }, wireFigures(wire))),
  h("p", { class: "hint" }, `${wire.near} to ${wire.far}`, wire.interface && ` (${wire.interface})`), more);

/** @param {Device} device @param {boolean} isBusy */
export function wiresView(device, isBusy) {
  const { wires = [], facts, wire: chosen } = device;
  const findings = facts?.wires ?? [];
  const used = wireInUse(device);
  const others = wires.filter((wire) => wire !== used);
  if (!wires.length && !findings.length) return null;
  return h("section", { class: "wires", "aria-label": `Networks of ${device.name}` },
    h("h4", null, others.length ? "Networks" : "Network"),
    wires.length > 0 && h("div", { class: "chosen" },
      used ? row(used, h("p", { class: "hint" }, choiceWords(used, others, chosen))) : h("p", { class: "hint" }, "None of them carries tensors now."),
      chosen !== "" && others.length > 0 && button(device, "", "Automatic", isBusy)),
    chosen && used?.far !== chosen && h("p", { class: "reason warn" }, `You chose ${chosen}, which cannot be used now.`),
    others.length > 0 && h("details", { key: "others" }, h("summary", null, plural(others.length, "other network")),
      h("ul", { class: "networks" }, others.map((wire) => h("li", { key: `${wire.near} ${wire.far}` }, row(wire),
        wire.problem ? h("p", { class: "reason warn" }, sentence(wire.problem)) : button(device, wire.far, "Use this one", isBusy))))),
    findingList(findings));
}

/** @param {Wire} used @param {Wire[]} others @param {string | undefined} chosen */
function choiceWords(used, others, chosen) {
  if (chosen && chosen === used.far) return "Carries tensors: you chose it.";
  return chosen === "" && others.some(({ problem }) => !problem) ? "Carries tensors: the fastest one." : "Carries tensors.";
}

/** @param {Device} device @param {string} far @param {string} words @param {boolean} isBusy */
const button = (device, far, words, isBusy) => h("button", {
  type: "button", disabled: isBusy, "data-action": "devices/wire", "data-id": device.id, "data-wire": far,
}, words, far && h("span", { class: "hidden-text" }, ` ${far}`));
