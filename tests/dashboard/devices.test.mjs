// @ts-check
import assert from "node:assert/strict";
import { test } from "node:test";

import {
  choices, condition, conditions, coresWords, derateWords, filtered, isOtherEngine, isWarm, seen, sortedDevices, wireWidth, wireWords,
} from "../../dashboard/devices/figures.mjs";
import { asText } from "../../dashboard/devices/findings.mjs";
import { figures } from "../../dashboard/devices/join.mjs";
import { engineWords } from "../../dashboard/format.mjs";
import { devices as view } from "../../dashboard/devices/index.mjs";
import { initialState, reducer } from "../../dashboard/state.mjs";
import { all, attribute, text } from "./tree.mjs";

const NOW = "2026-01-01T00:00:00Z";
const NOW_MS = Date.parse(NOW);
const GIB = 1024 ** 3;
const ENGINE = { version: "0.5.0", build: "0c1e570", rpc_protocol: "7.0.0", problem: "" };
const reduce = reducer([view]);

/** @param {object} [more] @returns {any} */
const facts = (more) => ({
  platform: "android", machine: "aarch64", cores: 8, memory_total_bytes: 8 * GIB, memory_available_bytes: 5 * GIB,
  ggml_devices: [{ name: "CPU", description: "", total_bytes: 8 * GIB, free_bytes: 5 * GIB }], engine: ENGINE,
  battery_percent: null, battery_charging: null, temperature_c: null, agent_start: "s1", ...more,
});
/** @param {string} name @param {object} [more] @returns {any} */
const device = (name, more) => ({
  id: `a-${name}`, name, address: "192.168.1.2", state: "ready", reason: "", silent_s: 1, used_by: null,
  round_trip_ms: 5.8, facts: facts(), rpc_server: null, excluded: false, doing: "", speed: null, ...more,
});
/** @param {object} [more] */
const speed = (more) => ({ decode_bytes_per_s: 17e9, up_bytes_per_s: 38e6, down_bytes_per_s: 35e6, round_trip_ms: 6, taken_at: "2025-12-30T00:00:00Z", stale: "", ...more });
/** @param {string} name @param {string} [state] */
const deployment = (name, state = "ready") => ({ id: name, spec: { name, model: "/m.gguf" }, state, reason: "", loads: [] });

/** @param {any} state @param {...[string, any?]} events */
const after = (state, ...events) => events.reduce((held, [type, data]) => reduce(held, { type, data, at_ms: NOW_MS }), state);
/** @param {any[]} devices @param {any[]} [deployments] @returns {any} */
const world = (devices, deployments = []) =>
  after(initialState([view]), ["snapshot", { main_host: "desk", time: NOW, engine: ENGINE, devices, deployments }]);
/** @param {any} state */
const shown = (state) => view.render(state, NOW_MS);
/** @param {any} tree @param {string} name */
const button = (tree, name) => all(tree, "button").find((each) => text(each) === name);
/** The card of a device, open. @param {any} one @param {any[]} [deployments] @param {...[string, any?]} events */
const card = (one, deployments = [], ...events) =>
  all(shown(after(world([one], deployments), ["devices/open", { id: one.id, open: true }], ...events)), "article")[0];

test("devices are sorted by name, numbers as numbers", () => {
  const state = world([device("phone-10"), device("Mac"), device("phone-9")]);
  assert.deepEqual(sortedDevices(state).map(({ name }) => name), ["Mac", "phone-9", "phone-10"]);
});

test("one word for how a device stands: being lost outweighs being excluded", () => {
  assert.equal(condition(device("a")), "ready");
  assert.equal(condition(device("a", { excluded: true })), "excluded");
  assert.equal(condition(device("a", { state: "lost", excluded: true })), "lost");
});

test("the line to a device is thicker by a step for each factor of ten", () => {
  const widths = [null, 0, 1e3, 1e6, 1e7, 1e8, 1e9, 1e12].map(wireWidth);
  assert.deepEqual(widths, [2, 2, 2, 2, 4, 6, 8, 8]);
});

test("the line says round trip and measured speed, and that nothing was measured", () => {
  assert.deepEqual(wireWords(device("a", { speed: speed() })), { trip: "5.8 ms", rate: "304 Mbit/s" });
  assert.deepEqual(wireWords(device("a")), { trip: "5.8 ms", rate: "not measured" });
  assert.deepEqual(wireWords(device("a", { round_trip_ms: null })), { trip: "", rate: "not measured" });
  assert.equal(wireWords(device("a", { round_trip_ms: null, speed: speed() })).trip, "6.0 ms");
  assert.equal(wireWords(device("a", { address: "127.0.0.1", speed: speed() })).rate, "same host");
});

test("a phone is hot earlier than a computer", () => {
  assert.equal(isWarm(facts({ temperature_c: 41.9 })), false);
  assert.equal(isWarm(facts({ temperature_c: 42 })), true);
  assert.equal(isWarm(facts({ platform: "linux", temperature_c: 60 })), false);
  assert.equal(isWarm(facts({ temperature_c: null })), false);
});

test("another build or protocol is noticed, however git abbreviates the same commit", () => {
  assert.equal(isOtherEngine(ENGINE, ENGINE), false);
  assert.equal(isOtherEngine({ ...ENGINE, build: "0c1e57012" }, ENGINE), false);
  assert.equal(isOtherEngine({ ...ENGINE, build: "b999999" }, ENGINE), true);
  assert.equal(isOtherEngine({ ...ENGINE, rpc_protocol: "6.1.0" }, ENGINE), true);
  assert.equal(isOtherEngine({ ...ENGINE, build: "" }, ENGINE), false, "unknown");
  assert.equal(isOtherEngine(null, ENGINE), false);
  assert.equal(engineWords(ENGINE), "0c1e570 · RPC 7.0.0");
  assert.equal(engineWords(null), "none");
});

test("the filter finds names, deployments, platforms and reasons, and holds to a condition", () => {
  const all = [device("mac", { facts: facts({ platform: "macos" }) }), device("pixel", { doing: "serving Qwen" }), device("old", { state: "lost", reason: "last heard of 9 s ago" })];
  const names = (/** @type {string} */ words, only = "") => filtered(all, words, only).map(({ name }) => name);
  assert.deepEqual(names(""), ["mac", "pixel", "old"]);
  assert.deepEqual(names(" QWEN "), ["pixel"]);
  assert.deepEqual(names("macos"), ["mac"]);
  assert.deepEqual(names("heard"), ["old"]);
  assert.deepEqual(names("", "lost"), ["old"]);
  assert.deepEqual(names("mac", "lost"), []);
  assert.deepEqual(conditions(all), [["ready", 2], ["lost", 1]]);
});

test("what can be done, and why not now", () => {
  const why = (/** @type {any} */ one, /** @type {any[]} */ ...events) => {
    const state = after(world([one], [deployment("chat")]), ...events);
    return Object.fromEntries(choices(seen(one, state, NOW_MS)).map(([action, , , reason]) => [action, reason]));
  };
  assert.deepEqual(why(device("a")), { measure: "", exclude: "", drain: "No deployment uses it.", rename: "", remove: "" });
  assert.deepEqual(why(device("a", { used_by: "chat" })), { measure: "chat uses it; stop that first.", exclude: "", drain: "", rename: "", remove: "" });
  assert.equal(why(device("a", { state: "lost" })).measure, "It is lost.");
  assert.equal(why(device("a", { doing: "being measured" })).measure, "It is being measured.");
  assert.equal(why(device("a", { excluded: true })).include, "");
  assert.equal("exclude" in why(device("a", { excluded: true })), false);
  const busy = why(device("a"), ["ask", { key: "device a-a", busy: true }]);
  assert.ok(Object.values(busy).every(Boolean), "one thing at a time");
});

test("without devices the page says what to do", () => {
  const tree = shown(world([]));
  assert.match(text(tree), /No device has joined yet/);
  assert.equal(all(tree, "button").length, 1, "one button, and no second one in the head");
});

test("before the first snapshot nothing is claimed", () => {
  const tree = shown(initialState([view]));
  assert.match(text(tree), /Waiting for the main host/);
  assert.equal(all(tree, "button").length, 0);
});

test("a card says what the device does, with a link to the deployment", () => {
  const serving = card(device("a", { used_by: "my chat", doing: "serving my chat" }), [deployment("my chat")]);
  assert.match(text(serving), /serving my chat/);
  assert.deepEqual(all(serving, "a").map((each) => attribute(each, "href")), ["#/deployments/my%20chat"]);
  assert.match(text(card(device("a"))), /idle/);
  const older = card({ ...device("a", { used_by: "chat" }), doing: undefined }, [deployment("chat", "starting")]);
  assert.match(text(older), /loading chat/, "an older supervisor does not say it");
});

test("a card gives the reason of each state", () => {
  const reasons = [
    [device("a", { state: "lost", reason: "last heard of 31 s ago" }), "last heard of 31 s ago"],
    [device("a", { state: "unusable" }), "No reason given."],
    [device("a", { excluded: true }), "Excluded: no plan uses it."],
    [device("a", { excluded: true, used_by: "chat" }), "What runs on it goes on."],
    [device("a", { rpc_server: { state: "failed", detail: "exit 1" } }), "Its worker failed: exit 1"],
    [device("a", { speed: speed({ stale: "measured with another build" }) }), "no longer counts: measured with another build"],
    [device("a", { facts: facts({ engine: { ...ENGINE, build: "b999999" } }) }), "(main host: 0c1e570 · RPC 7.0.0)"],
  ];
  for (const [one, words] of reasons) assert.ok(text(card(one)).includes(words), words);
  assert.ok(!text(card(device("a", { state: "lost", reason: "gone" }))).includes("idle"));
});

test("memory adds up, and figures that are unknown are left out", () => {
  const tree = card(device("a", { rpc_server: { state: "ready", resident_bytes: 2 * GIB } }));
  assert.match(text(tree), /2.0 GiB used by us 1.0 GiB by others 5.0 GiB free of 8.0 GiB/);
  assert.doesNotMatch(text(tree), /°C|%|null|undefined|NaN/);
  assert.doesNotMatch(text(card(device("a", { facts: null, round_trip_ms: null }))), /null|undefined|NaN|unknown/);
});

test("a lost device shows no figures of long ago", () => {
  const tree = all(shown(world([device("a", { state: "lost", reason: "last heard of 53 s ago", facts: facts({ battery_percent: 64 }) })])), "article");
  assert.doesNotMatch(text(tree), /free|64 %|8 cores/);
});

test("the age of a silent device ticks, that of a ready one does not", () => {
  const one = device("a", { state: "suspect", silent_s: 12 });
  const state = world([one, device("b")]);
  assert.equal(seen(one, state, NOW_MS + 2000).heard, "14 s ago");
  const ready = (/** @type {number} */ now_ms) => Object.values(seen(device("b"), state, now_ms));
  assert.deepEqual(ready(NOW_MS), ready(NOW_MS + 60_000), "and so its card is not made anew");
});

test("more than twelve devices are a list, whose rows are made anew only when theirs changes", () => {
  const many = Array.from({ length: 13 }, (_, index) => device(`d${index}`));
  const state = world(many);
  assert.equal(all(shown(world(many.slice(1))), "article").length, 12);
  assert.equal(all(shown(state), "article").length, 0);
  assert.equal(all(shown(state), "summary").length, 13);
  const next = after(state, ["device", device("d3", { round_trip_ms: 7 })]);
  const inputs = (/** @type {any} */ each) => sortedDevices(each).map((one) => Object.values(seen(one, each, NOW_MS)));
  const isSame = inputs(state).map((values, index) => values.every((value, at) => Object.is(value, inputs(next)[index][at])));
  assert.equal(isSame.filter((same) => !same).length, 1);
  const only = after(state, ["device", device("d3", { state: "lost" })], ["devices/set", { only: "lost" }]);
  assert.equal(all(shown(only), "summary").length, 1);
  assert.equal(all(shown(after(only, ["devices/set", { only: "" }])), "summary").length, 13);
});

test("a measurement is shown until it ends, and what was refused afterwards", () => {
  const open = world([device("a")]);
  const begun = after(open, ["devices/step", { id: "a-a", step: "Q4_K", part: 0.4, device: "CPU" }]);
  const [bar] = all(shown(begun), "progress");
  assert.equal(attribute(bar, "value"), 0.4);
  assert.match(text(shown(begun)), /Measuring CPU: Q4_K/);
  const ended = after(begun, ["devices/step", { id: "a-a" }], ["ask", { key: "device a-a", error: "a launch took it" }]);
  assert.equal(all(shown(ended), "progress").length, 0);
  assert.match(text(shown(ended)), /a launch took it/);
});

test("rename and remove are asked for in place", () => {
  const renaming = card(device("a"), [], ["devices/set", { renaming: "a-a" }]);
  assert.equal(attribute(all(renaming, "input")[0], "value"), "a");
  assert.equal(button(renaming, "Rename"), undefined);
  const removing = after(world([device("a", { used_by: "chat" })], [deployment("chat")]), ["devices/set", { removing: "a-a" }]);
  assert.match(text(all(shown(removing), "dialog")[0]), /Remove a\?.*chat uses it/);
  assert.equal(all(shown(after(removing, ["device_removed", { id: "a-a" }])), "dialog").length, 0, "somebody else was faster");
});

// The dialog that waits for a device.

const CODE = { code: "K", expires_at: "2026-01-01T12:00:00Z", lines: [{ platform: "termux", command: "curl install", qr: "data:image/svg+xml,x" }] };
/** @param {any} state */
const dialog = (state) => text(all(shown(state), "dialog"));
/** @param {any} state */
const arrived = (state) => state.views.devices.join.arrived;

test("the dialog shows the line of the chosen tab, its QR code, and how long it is good", () => {
  const lines = [{ platform: "termux", command: "curl phone", qr: "data:image/svg+xml,x" }, { platform: "linux", command: "curl pc", qr: "https://elsewhere/x.svg" }];
  const open = after(world([]), ["devices/join", {}], ["devices/join-set", { code: { ...CODE, lines } }]);
  assert.match(dialog(open), /curl phone.*valid for 12 h.*Waiting for the device/);
  assert.equal(attribute(all(shown(open), "img")[0], "src"), "data:image/svg+xml,x");
  const pc = after(open, ["devices/join-set", { tab: "linux" }]);
  assert.match(dialog(pc), /curl pc/);
  assert.equal(all(shown(pc), "img").length, 0, "pictures come in the answer, never from elsewhere");
  const chosen = all(shown(pc), "button").filter((each) => attribute(each, "role") === "tab");
  assert.deepEqual(chosen.map((each) => [attribute(each, "aria-selected"), attribute(each, "tabindex")]), [["false", -1], ["false", -1], ["true", 0]]);
});

test("a code that expired is not offered", () => {
  const open = after(world([]), ["devices/join", {}], ["devices/join-set", { code: { ...CODE, expires_at: NOW } }]);
  assert.match(dialog(open), /expired/);
  assert.doesNotMatch(dialog(open), /curl/);
  const refused = after(world([]), ["devices/join", {}], ["ask", { key: "join", error: "no more codes" }]);
  assert.match(dialog(refused), /no more codes.*Try again/);
});

test("a device that was not there when the dialog opened has arrived", () => {
  const open = after(world([device("a")]), ["devices/join", {}]);
  assert.deepEqual(arrived(after(open, ["device", device("a", { round_trip_ms: 9 })])), [], "a heartbeat is no arrival");
  const joining = after(open, ["device", device("b", { state: "lost", facts: null })]);
  assert.deepEqual(arrived(joining), [], "joined, but it has not spoken yet");
  const there = after(joining, ["device", device("b")], ["device", device("b", { round_trip_ms: 1 })]);
  assert.deepEqual(arrived(there), ["a-b"]);
  assert.match(dialog(there), /b has joined ready Android · 8 cores · 5.0 GiB of 8.0 GiB free/);
  const unfit = after(joining, ["device", device("b", { state: "incompatible", reason: "speaks RPC 6" })]);
  assert.match(dialog(unfit), /b has joined incompatible speaks RPC 6/);
});

test("so has one that joins anew: it was silent, or another agent process speaks for it", () => {
  const open = after(world([device("a"), device("b", { state: "lost", facts: facts() })]), ["devices/join", {}]);
  const restarted = device("a", { facts: facts({ agent_start: "s2" }) });
  assert.deepEqual(arrived(after(open, ["device", restarted])), ["a-a"]);
  assert.deepEqual(arrived(after(open, ["device", device("b")])), ["a-b"]);
  const late = after(open, ["device", device("a", { state: "lost" })], ["device", device("a")]);
  assert.deepEqual(arrived(late), [], "it was only late");
  const again = after(open, ["device_removed", { id: "a-a" }], ["device", device("a")]);
  assert.deepEqual(arrived(again), ["a-a"], "removed and joined again");
});

test("a reconnect finds who came meanwhile; who is removed goes from the dialog", () => {
  const open = after(world([device("a")]), ["devices/join", {}], ["disconnected"]);
  const back = after(open, ["snapshot", { main_host: "desk", time: NOW, devices: [device("a"), device("b")] }]);
  assert.deepEqual(arrived(back), ["a-b"]);
  assert.deepEqual(arrived(after(back, ["device_removed", { id: "a-b" }])), []);
  const more = after(back, ["devices/another"]);
  assert.deepEqual(arrived(more), [], "waits for the next one");
  assert.deepEqual(arrived(after(more, ["device", device("c")])), ["a-c"]);
});

test("a code that comes after the dialog was closed is dropped", () => {
  const closed = after(world([]), ["devices/join", {}], ["devices/set", { join: null }]);
  assert.equal(after(closed, ["devices/join-set", { code: CODE }]), closed);
  assert.equal(after(closed, ["device", device("a")]).views.devices.join, null);
});

test("figures of a device that joined leave out what is unknown", () => {
  assert.equal(figures(device("a", { round_trip_ms: null })), "Android · 8 cores · 5.0 GiB of 8.0 GiB free");
  assert.equal(figures(device("a", { facts: null })), "");
});

// Care: parked and hot devices, engines on their way, networks, the doctor.

test("a parked device says why and what brings it back, calmly, and its line is not broken", () => {
  const one = device("a", { state: "parked", reason: "its battery has 18 % left; it takes work again when it charges" });
  const tree = card(one);
  assert.match(text(tree), /parked.*Takes no work now: its battery has 18 % left; it takes work again when it charges\./);
  assert.match(text(tree), /5\.0 GiB free/, "it is there, and its figures are of now");
  const line = all(shown(world([one])), "p").find((each) => /cable/.test(attribute(each, "class") ?? ""));
  assert.doesNotMatch(attribute(line, "class"), /broken/);
  const still = (/** @type {number} */ now_ms) => seen(one, world([one]), now_ms).heard;
  assert.equal(still(NOW_MS), still(NOW_MS + 60_000), "it is heard of, so nothing ticks");
});

test("a hot device says how much of its speed counts", () => {
  assert.match(text(card(device("a", { facts: facts({ derate: 0.7, derate_reason: "hot (44 °C)" }) }))), /hot \(44 °C\): counted at 0\.7 of its speed/);
  assert.doesNotMatch(text(card(device("a", { facts: facts({ derate: 1, derate_reason: "" }) }))), /counted at/);
  assert.equal(derateWords(facts()), "", "an older agent does not say it");
});

test("fast cores are told where the platform tells them and they differ", () => {
  assert.equal(coresWords(facts({ fast_cores: 4 })), "4 fast of 8 cores");
  for (const fast_cores of [8, null, undefined]) assert.equal(coresWords(facts({ fast_cores })), "8 cores");
});

test("an engine is told by its release and variant", () => {
  assert.equal(engineWords({ ...ENGINE, release: "b10516", variant: "android-arm64" }), "b10516 (0c1e570) · android-arm64 · RPC 7.0.0");
  assert.equal(engineWords({ ...ENGINE, release: "b1", build: "b1" }), "b1 · RPC 7.0.0");
});

test("a device without an engine is installing while one comes from the main host, and unusable when that failed", () => {
  const without = { state: "unusable", reason: "no engine was found", facts: facts({ engine: null }) };
  const install = (/** @type {string} */ state, more = {}) => device("a", { ...without, engine_install: { build: "b10516", state, done_bytes: 44 * 1024 ** 2, total_bytes: 88 * 1024 ** 2, detail: "", ...more } });
  const fetching = card(install("fetching"));
  assert.match(text(fetching), /installing.*Engine b10516 comes from the main host: 44 MiB of 88 MiB/);
  assert.doesNotMatch(text(fetching), /no engine was found/i);
  assert.equal(attribute(all(fetching, "progress")[0], "value"), 44 * 1024 ** 2);
  assert.match(text(card(install("proving"))), /being tried out/);
  const failed = card(install("failed", { detail: "its digest is wrong" }));
  assert.match(text(failed), /unusable.*no engine was found.*could not be installed: its digest is wrong.*Check this device/);
  const serving = device("a", { engine_install: install("fetching").engine_install });
  assert.equal(condition(serving), "ready", "another build comes beside the one in use");
  const used = device("a", { facts: facts({ engine: { ...ENGINE, release: "b10516" } }), engine_install: install("ready").engine_install });
  assert.doesNotMatch(text(card(used)), /beside the one in use/);
});

const WIRES = [
  { near: "10.0.0.1", far: "10.0.0.2", kind: "ethernet", interface: "en0", round_trip_ms: 0.3, up_bytes_per_s: 117.5e6, in_use: true, problem: "" },
  { near: "192.168.1.1", far: "192.168.1.2", kind: "wifi", interface: "en1", round_trip_ms: 4.1, up_bytes_per_s: 41e6, in_use: false, problem: "" },
  { near: "169.254.1.1", far: "169.254.1.2", kind: "", interface: "en7", round_trip_ms: null, up_bytes_per_s: null, in_use: false, problem: "it does not answer" },
];

test("the network that carries tensors is told with its figures; others can be chosen, but not broken ones", () => {
  const tree = card(device("a", { wires: WIRES, wire: "" }));
  assert.match(text(tree), /Ethernet 940 Mbit\/s, 0\.3 ms 10\.0\.0\.1 to 10\.0\.0\.2 \(en0\) Carries tensors: the fastest one/);
  assert.match(text(tree), /2 other networks.*Wi-Fi 328 Mbit\/s, 4\.1 ms.*en7 not measured.*It does not answer/);
  const choices = all(tree, "button").filter((each) => attribute(each, "data-action") === "devices/wire");
  assert.deepEqual(choices.map((each) => attribute(each, "data-wire")), ["192.168.1.2"]);
  const line = all(shown(world([device("a", { wires: WIRES })])), "p").find((each) => /cable/.test(attribute(each, "class") ?? ""));
  assert.equal(text(line), "Network: 0.3 ms 940 Mbit/s Ethernet");
});

test("a chosen network can be given back, and is told when it cannot be used", () => {
  const choices = (/** @type {any} */ tree) => all(tree, "button").filter((each) => attribute(each, "data-action") === "devices/wire").map((each) => attribute(each, "data-wire"));
  const chosen = card(device("a", { wires: WIRES, wire: "10.0.0.2" }));
  assert.match(text(chosen), /Carries tensors: you chose it/);
  assert.deepEqual(choices(chosen), ["", "192.168.1.2"]);
  assert.match(text(card(device("a", { wires: WIRES, wire: "169.254.1.2" }))), /You chose 169\.254\.1\.2, which cannot be used now/);
  assert.doesNotMatch(text(card(device("a"))), /Network(s)? of|Carries tensors/);
});

const FINDINGS = [
  { check: "disk", title: "Disk", verdict: "ok", found: "61 GiB free", remedy: "" },
  { check: "sleep", title: "Sleep", verdict: "warning", found: "it sleeps after 10 min", remedy: "sudo pmset -c sleep 0" },
  { check: "engine", title: "Engine", verdict: "blocks", found: "none was found", remedy: "join again" },
  { check: "lid", title: "Lid", verdict: "unknown", found: "this platform does not tell", remedy: "" },
];
const FOUND = [{ device: "a", findings: FINDINGS }];

test("what is odd about its networks is told on the card and in words", () => {
  const tree = card(device("a", { facts: facts({ wires: [{ ...FINDINGS[1], title: "Overlap", found: "two networks overlap", remedy: "take another subnet" }] }) }));
  assert.match(text(tree), /1 network warning.*Overlap Two networks overlap\. What to do: take another subnet/);
});

test("findings: blocking first, what is well folded to a count, commands untouched", () => {
  const tree = card(device("a"), [], ["devices/check", { key: "a-a", since_ms: NOW_MS }], ["devices/checked", { key: "a-a", since_ms: NOW_MS, results: FOUND }]);
  assert.match(text(tree), /1 thing blocks, 1 warning, 1 not known, 1 ok.*blocks Engine.*warning Sleep.*not known Lid.*1 check is ok.*Disk/);
  assert.match(text(tree), /sudo pmset -c sleep 0/);
  assert.equal(asText(FOUND), [
    "a: 1 thing blocks, 1 warning, 1 not known, 1 ok",
    "  [blocks] Engine: none was found\n      do: join again", "  [warning] Sleep: it sleeps after 10 min\n      do: sudo pmset -c sleep 0",
    "  [not known] Lid: this platform does not tell", "  [ok] Disk: 61 GiB free",
  ].join("\n"));
});

test("everything checked: the worst device first, those that are well in one line", () => {
  const results = [{ device: "well", findings: [FINDINGS[0]] }, { device: "warned", findings: [FINDINGS[1]] }, ...FOUND];
  const begun = after(world([device("a")]), ["ask", { key: "check all", busy: true }], ["devices/check", { key: "all", since_ms: NOW_MS - 8000 }]);
  assert.match(text(shown(begun)), /Checking 1 device….*8 s so far/);
  assert.equal(attribute(button(shown(begun), "Check everything"), "disabled"), true);
  const found = text(shown(after(begun, ["devices/checked", { key: "all", since_ms: NOW_MS - 8000, results }])));
  assert.match(found, /3 checked, 8 s ago.*a 1 thing blocks.*warned 1 warning.*ok well: nothing is wrong/);
});

test("an answer to what was asked before is dropped, and a refusal is told", () => {
  const twice = after(world([device("a")]), ["devices/check", { key: "all", since_ms: 1 }], ["devices/check", { key: "all", since_ms: 2 }]);
  assert.equal(after(twice, ["devices/checked", { key: "all", since_ms: 1, results: FOUND }]).views.devices.checks.all.results, null);
  const refused = after(twice, ["devices/checked", { key: "all", since_ms: 2 }], ["ask", { key: "check all", error: "no device answers" }]);
  assert.match(text(shown(refused)), /no device answers/);
  assert.doesNotMatch(text(shown(refused)), /Checking/);
  const closed = after(twice, ["devices/check-closed", { key: "all" }]);
  assert.equal(after(closed, ["devices/checked", { key: "all", since_ms: 2, results: FOUND }]).views.devices.checks.all, undefined);
});
