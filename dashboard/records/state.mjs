// @ts-check
// What was read of launches, and which two were picked. Records of launches that go on are read again
// whenever their deployment's state changes.
/** @import { LaunchRecord, Page, ShellCommand, State } from "../types.mjs" */

/**
 * @typedef {{list: LaunchRecord[] | null, known: Record<string, LaunchRecord>, shell: Record<string, ShellCommand[]>,
 *   picked: string[], showsAll: boolean}} Records `picked`: numbers, the newest pick last
 */

/** @type {Records} */
export const initial = { list: null, known: {}, shell: {}, picked: [], showsAll: false };

/** @param {Records} own @param {{type: string, data: any}} event @returns {Records} */
export function reduce(own, { type, data }) {
  switch (type) {
    case "records/list": return { ...own, list: data.list };
    case "records/one": return { ...own, known: { ...own.known, [data.record.id]: data.record } };
    case "records/shell": return { ...own, shell: { ...own.shell, [data.id]: data.commands } };
    case "records/pick": return { ...own, picked: picked(own.picked, data.id, data.isPicked) };
    case "records/all": return { ...own, showsAll: data.showsAll };
    case "key_required": return initial;
    default: return own;
  }
}

/** The last two that were ticked. @param {string[]} before @param {string} id @param {boolean} isPicked */
const picked = (before, id, isPicked) => [...before.filter((each) => each !== id), ...(isPicked ? [id] : [])].slice(-2);

/** Changes when something must be read; empty: nothing. @param {State} state */
function wanted({ route, connection, deployments }) {
  if (route.view !== "records" || connection !== "connected") return "";
  return [...route.parts, "of", ...Object.values(deployments).map(({ launch_id, state }) => `${launch_id} ${state}`)].join("/");
}

/** @param {Page} page @param {State} before @param {State} after */
export async function effect(page, before, after) {
  const isSame = before.deployments === after.deployments && before.route === after.route && before.connection === after.connection;
  if (isSame || wanted(before) === wanted(after) || !wanted(after)) return;
  const { parts } = after.route;
  if (!parts.length) {
    const answer = await page.ask("records", page.api.records(50));
    if (answer) page.dispatch("records/list", { list: answer.value });
  }
  for (const id of parts) {
    const answer = await page.ask(`record ${id}`, page.api.record(encodeURIComponent(id)));
    if (answer) page.dispatch("records/one", { record: answer.value });
    const shell = parts.length === 1 && answer && await page.ask(`shell ${id}`, page.api.shell(id));
    if (shell) page.dispatch("records/shell", { id, commands: shell.value.commands });
  }
}

/** @type {Record<string, (page: Page, element: any, data: DOMStringMap, event: any) => unknown>} */
export const recordsActions = {
  "records/pick": (page, box) => page.dispatch("records/pick", { id: box.value, isPicked: box.checked }),
  "records/all": (page, box) => page.dispatch("records/all", { showsAll: box.checked }),
};
