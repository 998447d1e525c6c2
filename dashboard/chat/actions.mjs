// @ts-check
// Asking the gateway, and reading its answer as it comes.
/** @import { Page } from "../types.mjs" */
/** @import { Refusal } from "./state.mjs" */

import { ApiError, eventsOf, send } from "../api.mjs";
import { PATH, pieceOf, refusalOf, requestOf, target } from "./answer.mjs";
import { running } from "./state.mjs";

const AT_END_PX = 40;
const LOST = { code: "", detail: "The connection to the main host ended in the middle of this answer." };
let stopping = new AbortController();

/** @param {Page} page @param {string} type @param {any} [data] */
async function answered(page, type, data) {
  const { deployments, views } = page.state();
  const deployment = target(deployments, views.chat.chosen)?.id;
  if (!deployment || running(views.chat)) return;
  page.dispatch(type, { ...data, deployment });
  const { turns, runs: run, options } = page.state().views.chat;
  const { signal } = (stopping = new AbortController());
  /** @type {{finish: string, usage: any, timings: any, refusal: Refusal | null}} */
  const end = { finish: "", usage: null, timings: null, refusal: null };
  const fresh = { text: "", thought: "" };
  /** @type {number | null} */
  let first_ms = null;
  let frame = 0;
  const show = () => { // all that came since the last frame at once
    cancelAnimationFrame(frame);
    frame = 0;
    if (fresh.text || fresh.thought) page.dispatch("chat/more", { run, first_ms, ...fresh });
    fresh.text = fresh.thought = "";
  };
  try {
    for await (const { data: told } of eventsOf(await send("POST", PATH, requestOf(turns, options), signal))) {
      const piece = pieceOf(told);
      if (!piece) continue;
      for (const what of /** @type {const} */ (["finish", "usage", "timings", "refusal"])) end[what] = piece[what] || end[what];
      fresh.text += piece.text;
      fresh.thought += piece.thought;
      if (piece.text || piece.thought) first_ms ??= Date.now();
      frame ||= requestAnimationFrame(show);
    }
    if (!end.finish) end.refusal ??= refusalOf(LOST);
  } catch (error) {
    if (error instanceof ApiError && error.code === "key_required") page.signedOut();
    if (!signal.aborted) end.refusal = error instanceof ApiError ? refusalOf({ ...error.problem, detail: error.message }, error) : refusalOf(LOST);
  }
  show();
  page.dispatch("chat/end", { run, ...end, phase: end.refusal ? "failed" : signal.aborted ? "stopped" : "done" });
  // A refusal is an alert, which is read anyway.
  page.dispatch("announce", { text: end.refusal ? "" : signal.aborted ? "Stopped." : "The answer is complete." });
}

/** @param {Page} page @param {HTMLTextAreaElement} box */
function sendFrom(page, box) {
  const text = box.value.trim();
  if (!text || running(page.state().views.chat)) return;
  box.value = "";
  answered(page, "chat/ask", { text });
}

const isTouched = () => globalThis.matchMedia?.("(pointer: coarse)").matches;

/** The focus of a button that is gone. On a phone it would bring up the keyboard. */
const toBox = () => isTouched() || globalThis.document?.getElementById("chat-message")?.focus();

/** @type {Record<string, (page: Page, element: any, data: DOMStringMap, event: any) => unknown>} */
export const chatActions = {
  "chat/send": (page, form) => sendFrom(page, form.elements.message),
  "chat/key"(page, box, _, event) {
    // Touch keyboards have no Shift+Enter; while a word is being composed, Enter is the input method's.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || isTouched()) return;
    event.preventDefault();
    sendFrom(page, box);
  },
  "chat/stop"(_, __, ___, event) {
    if (!(event?.detail > 1)) stopping.abort(); // a second click was still meant for Send
  },
  "chat/again"(page) {
    answered(page, "chat/again");
    toBox();
  },
  "chat/clear"(page) {
    stopping.abort();
    page.dispatch("chat/clear");
    toBox();
  },
  "chat/choose": (page, select) => page.dispatch("chat/choose", { id: select.value }),
  "chat/draft": (page, box) => page.dispatch("chat/draft", { text: box.value }),
  "chat/option": (page, field) => page.dispatch("chat/option", { name: field.name, value: field.value }),
  "chat/scroll"(page, { scrollHeight, scrollTop, clientHeight }) {
    const isFollowing = scrollHeight - scrollTop - clientHeight < AT_END_PX;
    if (isFollowing !== page.state().views.chat.isFollowing) page.dispatch("chat/follow", { isFollowing });
  },
};
