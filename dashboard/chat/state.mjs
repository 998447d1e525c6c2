// @ts-check
// The conversation, which lives as long as the page. Times are this browser's, in ms.

/**
 * @typedef {{prompt_tokens?: number, completion_tokens?: number}} Usage
 * @typedef {{predicted_n?: number, predicted_per_second?: number, cache_n?: number}} Timings of llama-server
 * @typedef {{status: number, code: string, detail: string, supervisor: any}} Refusal
 * @typedef {{run: number, phase: "waiting" | "answering" | "done" | "stopped" | "failed", text: string, thought: string,
 *   finish: string, sent_ms: number, first_ms: number | null, ended_ms: number | null, usage: Usage | null,
 *   timings: Timings | null, refusal: Refusal | null}} Answer `run` tells it from the one before it
 * @typedef {{id: number, asked: string, deployment: string, answer: Answer}} Turn
 * @typedef {{turns: Turn[], runs: number, chosen: string, draft: string, options: Record<string, string>,
 *   isFollowing: boolean}} Chat
 */

/** @type {Chat} */
export const initial = { turns: [], runs: 0, chosen: "", draft: "", options: {}, isFollowing: true };

/** @param {Chat} chat @param {{type: string, data: any, at_ms: number}} event @returns {Chat} */
export function reduce(chat, { type, data, at_ms }) {
  switch (type) {
    case "chat/choose": return { ...chat, chosen: data.id };
    case "chat/draft": return { ...chat, draft: data.text };
    case "chat/option": return { ...chat, options: { ...chat.options, [data.name]: data.value } };
    case "chat/follow": return { ...chat, isFollowing: data.isFollowing };
    case "chat/clear": return { ...chat, turns: [] };
    case "chat/ask": return begun(chat, data.text, data.deployment, at_ms);
    case "chat/again": {
      const { asked } = chat.turns[chat.turns.length - 1];
      return begun({ ...chat, turns: chat.turns.slice(0, -1) }, asked, data.deployment, at_ms);
    }
    case "chat/more": return changed(chat, data.run, (answer) => ({
      ...answer,
      phase: "answering",
      first_ms: answer.first_ms ?? data.first_ms,
      text: answer.text + data.text,
      thought: answer.thought + data.thought,
    }));
    case "chat/end": return changed(chat, data.run, (answer) => ({ ...answer, ...data, ended_ms: at_ms }));
    default: return chat;
  }
}

/** @param {Chat} chat @param {string} asked @param {string} deployment @param {number} sent_ms @returns {Chat} */
function begun(chat, asked, deployment, sent_ms) {
  const id = chat.runs + 1;
  /** @type {Answer} */
  const answer = {
    run: id, phase: "waiting", text: "", thought: "", finish: "", sent_ms, first_ms: null, ended_ms: null,
    usage: null, timings: null, refusal: null,
  };
  return { ...chat, turns: [...chat.turns, { id, asked, deployment, answer }], runs: id, draft: "", isFollowing: true };
}

/**
 * A late word about an answer that is gone changes nothing.
 * @param {Chat} chat @param {number} run @param {(answer: Answer) => Answer} change
 */
function changed(chat, run, change) {
  if (!chat.turns.some(({ answer }) => answer.run === run)) return chat;
  const turns = chat.turns.map((turn) => (turn.answer.run === run ? { ...turn, answer: change(turn.answer) } : turn));
  return { ...chat, turns };
}

/** The answer that is on its way, or null. @param {Chat} chat */
export const running = ({ turns }) =>
  turns.map(({ answer }) => answer).find(({ phase }) => phase === "waiting" || phase === "answering") ?? null;
