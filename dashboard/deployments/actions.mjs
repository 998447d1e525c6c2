// @ts-check
// What the view asks of the main host, and the streams that follow what is open.
/** @import { Page, State } from "../types.mjs" */

import { follow } from "../api.mjs";
import { shownId } from "./facts.mjs";
import { ROW_REM } from "./log_view.mjs";

const RETRY_MS = 3000;

/** @param {(api: Page["api"], id: string) => Promise<any>} request */
const asking = (request) => (/** @type {Page} */ page, /** @type {any} */ _, { id = "" }) =>
  page.ask(`deployment ${id}`, request(page.api, id));

const rowHeight_px = () => ROW_REM * parseFloat(getComputedStyle(document.documentElement).fontSize);

/** @param {Page} page */
const log = (page) => page.state().views.deployments.log;

/** @param {Page} page */
const logText = (page) => log(page).matches.map((/** @type {any} */ line) => `${line.process}  ${line.text}\n`).join("");

/** @type {Record<string, (page: Page, element: any, data: DOMStringMap, event: any) => unknown>} */
export const actions = {
  "deployments/start": asking((api, id) => api.start(id)),
  "deployments/stop": asking((api, id) => api.stop(id)),
  "deployments/stop-now": asking((api, id) => api.stop(id, true)),
  "deployments/relaunch": asking((api, id) => api.restart(id)),
  "deployments/ask-remove": (page, _, { id }) => page.dispatch("deployments/confirm", { id }),
  "deployments/keep": (page) => page.dispatch("deployments/confirm", { id: "" }),
  async "deployments/remove"(page, _, { id = "" }) {
    page.dispatch("deployments/confirm", { id: "" });
    if (await page.ask(`deployment ${id}`, page.api.remove(id)) && shownId(page.state()) === id) page.go("deployments");
  },
  "deployments/commands": (page, { open }) => page.dispatch("deployments/commands-open", { open }),

  "deployments/logs": (page, { open }) => page.dispatch("deployments/log-open", { open }),
  "deployments/log-text": (page, { value }) => page.dispatch("deployments/log-change", { text: value }),
  "deployments/log-choose": (page, { name, checked }) => page.dispatch("deployments/log-change", { [name]: checked }),
  "deployments/log-follow": (page) => page.dispatch("deployments/log-change", { follow: !log(page).follow }),
  "deployments/log-process": (page, button, { process }) =>
    page.dispatch("deployments/log-hide", { process, isHidden: button.getAttribute("aria-pressed") === "true" }),
  "deployments/log-scroll"(page, { scrollTop, scrollHeight, clientHeight }) {
    const row_px = rowHeight_px();
    const isAtEnd = scrollTop + clientHeight >= scrollHeight - row_px;
    page.dispatch("deployments/log-scroll", { top: Math.floor(scrollTop / row_px), follow: isAtEnd });
  },
  async "deployments/log-copy"(page) {
    if (await page.copyText(logText(page))) page.dispatch("copied", { key: "log" });
    else page.dispatch("announce", { text: "This browser does not permit copying here. Download it." });
  },
  "deployments/log-download"(page) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([logText(page)], { type: "text/plain" }));
    link.download = `${log(page).id}.log`;
    link.click();
    URL.revokeObjectURL(link.href);
  },
};

let streamed = ""; // the deployment whose log is open
let endStream = () => {};
let asked = 0; // the launch whose commands are shown

/** @param {Page} page @param {State} before @param {State} after */
export function effect(page, before, after) {
  const { log, isCommandsOpen } = after.views.deployments;
  const earlier = before.views.deployments.log;
  if (log && !log.follow && earlier?.id === log.id && earlier.gone < log.gone) keepInSight(log.gone - earlier.gone);
  const wanted = after.connection === "signed_out" ? "" : log?.id ?? "";
  if (wanted !== streamed) {
    endStream();
    streamed = wanted;
    endStream = wanted ? openLog(page, wanted) : () => {};
  }
  const launch = isCommandsOpen ? after.deployments[shownId(after)]?.launch_id ?? 0 : 0;
  if (launch === asked) return;
  asked = launch;
  if (launch) askCommands(page, launch);
}

/** As many rows went from above those that are read. @param {number} rows */
function keepInSight(rows) {
  requestAnimationFrame(() => { // after the page is drawn
    const box = document.querySelector(".log");
    if (box) box.scrollTop -= rows * rowHeight_px();
  });
}

/** @param {Page} page @param {string} id @returns {() => void} ends it */
function openLog(page, id) {
  let timer = 0;
  let end = () => {};
  const open = () => {
    end = follow(page.api.logStream(id), ["lines", "silent"], onEvent, onLost);
  };
  const onEvent = (/** @type {string} */ type, /** @type {any} */ data) => page.dispatch(`deployments/log-${type}`, { id, ...data });
  const onLost = (/** @type {boolean} */ isClosed) => {
    page.dispatch("deployments/log-lost", { id });
    if (isClosed) timer = setTimeout(open, RETRY_MS); // refused: the browser does not try again by itself
  };
  open();
  return () => {
    clearTimeout(timer);
    end();
  };
}

/** @param {Page} page @param {number} launch */
async function askCommands(page, launch) {
  const answer = await page.ask(`commands ${launch}`, Promise.all([page.api.shell(launch), page.api.record(launch)]));
  if (!answer || launch !== asked) return;
  const [{ commands }, record] = answer.value;
  page.dispatch("deployments/commands", { launch, commands, record });
}
