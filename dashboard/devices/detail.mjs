// @ts-check
// What is behind "Details" of a device: the doctor, facts, networks, and what can be done.
/** @import { Device, GgmlDevice } from "../types.mjs" */
/** @import { Seen } from "./figures.mjs" */

import { h } from "../dom.mjs";
import { bitRate, bytes, engineWords, percent, platformName } from "../format.mjs";
import { factList } from "../parts.mjs";
import { choices, coresWords, isOtherEngine } from "./figures.mjs";
import { checkView } from "./findings.mjs";
import { wiresView } from "./wires.mjs";

/** @param {GgmlDevice} ggml */
export const isBesideCpu = ({ name }) => !/^cpu/i.test(name);

/** @param {Seen} it */
export function detail(it) {
  const { device, engine, heard, measured } = it;
  const { facts, speed } = device;
  return h("div", { class: "detail" },
    doctor(it),
    factList([
      ["Address", device.address],
      ["Last heard", heard],
      ["Platform", facts && `${platformName(facts.platform)} ${facts.machine}`],
      ["Processor", facts && coresWords(facts)],
      ["Engine", facts && [engineWords(facts.engine), isOtherEngine(facts.engine, engine) && h("span", { class: "reason warn" }, ` (main host: ${engineWords(engine)})`)]],
      ["Reads weights", speed?.decode_bytes_per_s && `${bytes(speed.decode_bytes_per_s)}/s`],
      ["Network up", speed?.up_bytes_per_s && bitRate(speed.up_bytes_per_s)],
      ["Network down", speed?.down_bytes_per_s && bitRate(speed.down_bytes_per_s)],
      ["Measured", speed ? [measured, speed.stale && h("span", { class: "reason warn" }, ` (no longer counts: ${speed.stale})`)] : "never"],
    ]),
    facts?.ggml_devices.filter(isBesideCpu).map(({ name, description, total_bytes, free_bytes }) => h("div", { key: name },
      h("p", { class: "row small" }, h("span", null, name, " ", h("small", null, description)), h("span", { class: "figure" }, `${bytes(free_bytes)} of ${bytes(total_bytes)} free`)),
      h("progress", { class: "quiet", max: 100, value: percent(total_bytes - free_bytes, total_bytes), "aria-label": `${name}, memory in use` }))),
    wiresView(device, it.asked.busy),
    h("ul", { class: "choices", "aria-label": `Actions for ${device.name}` }, choices(it).map(([action, word, does, why]) => h("li", { key: action },
      action === "rename" && it.isRenaming ? renameForm(device) : [
        h("button", {
          type: "button", class: action === "remove" && "danger", disabled: why !== "",
          "data-action": `devices/${action}`, "data-id": device.id, "aria-describedby": `${action}-${device.id}`,
        }, word),
        h("span", { id: `${action}-${device.id}`, class: "hint" }, why || does)]))));
}

/** @param {Seen} it */
const doctor = ({ device: { id, name }, check, checkAge, checkAsked, isCopied }) => h("div", { class: "doctor" },
  h("p", null,
    h("button", { type: "button", disabled: checkAsked.busy, "data-action": "devices/check", "data-id": id, "aria-describedby": `doctor-${id}` }, "Check this device"),
    h("span", { id: `doctor-${id}`, class: "hint" }, "Finds what keeps it from serving. Changes nothing.")),
  checkView({ key: id, name, check, checkAge, asked: checkAsked, isCopied }));

/** @param {Device} device */
const renameForm = ({ id, name }) => h("form", { "data-submit": "devices/rename-to", "data-id": id },
  h("input", { name: "name", value: name, required: true, maxlength: 63, autocomplete: "off", "aria-label": "New name", "data-autofocus": true }),
  h("button", null, "Save"), h("button", { type: "button", class: "plain", "data-action": "devices/rename", "data-id": "" }, "Cancel"));
