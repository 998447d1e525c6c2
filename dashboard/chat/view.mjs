// @ts-check
/** @import { Deployment, State } from "../types.mjs" */
/** @import { Answer, Chat, Refusal, Turn } from "./state.mjs" */

import { h, memo } from "../dom.mjs";
import { deploymentName, duration, percent } from "../format.mjs";
import { badge, viewHead } from "../parts.mjs";
import { address } from "../routes.mjs";
import { choices, numbers, recordOf, target, waitWords } from "./answer.mjs";
import { markdown } from "./markdown.mjs";
import { running } from "./state.mjs";

/** @param {State} state */
export function render(state) {
  /** @type {Chat} */
  const chat = state.views.chat;
  const deployment = target(state.deployments, chat.chosen);
  const talk = { class: "talk", "aria-label": "Conversation", tabindex: 0, "data-scroll": "chat/scroll", "data-follow": chat.isFollowing };
  return h("div", { class: "chat" },
    viewHead("Chat", h("div", { class: "row" },
      deployment && chooser(state, deployment),
      chat.turns.length > 0 && h("button", { type: "button", "data-action": "chat/clear" }, "Clear"))),
    h("section", talk, chat.turns.length ? chat.turns.map((turn) => turnView(turn, state)) : nothingYet(deployment !== null)),
    state.who?.scopes.includes("inference") ?? true ? composer(chat, deployment !== null)
      : h("p", { class: "message warn" }, "Your key is not good for inference: it may look, but not ask."));
}

/** @param {State} state @param {Deployment} chosen */
function chooser({ deployments }, chosen) {
  const all = choices(deployments);
  return [
    h("label", { for: "chat-deployment", class: "hidden-text" }, "Deployment"),
    h("select", { id: "chat-deployment", key: Object.keys(deployments).join(), "data-action": "chat/choose" },
      all.map(({ deployment, isOpen }) => h("option", { key: deployment.id, value: deployment.id, selected: deployment === chosen, disabled: !isOpen },
        `${deploymentName(deployment)}${isOpen ? "" : `, ${deployment.state}`}`))),
    badge(chosen.state),
  ];
}

/** @param {boolean} hasDeployment */
const nothingYet = (hasDeployment) => h("div", { class: "empty" }, hasDeployment
  ? [h("p", null, "Ask something. Each answer comes with its numbers."),
    h("p", null, "What you write stays on your own machines, and this conversation ends with this page.")]
  : h("p", null, "Nothing runs that could answer. ", h("a", { href: address("launch") }, "Launch a model"), " first."));

/** @param {Turn} turn @param {State} state */
function turnView(turn, state) {
  const { id, asked, answer } = turn;
  const deployment = state.deployments[turn.deployment];
  const name = deployment ? deploymentName(deployment) : turn.deployment;
  const wait = waitWords(answer, deployment, state.traffic[turn.deployment]);
  const record = answer.ended_ms === null ? null : recordOf(turn, state.requests, state.skew_ms);
  const own = `answer-${id}`;
  const copied = state.copied.startsWith(`${own}-`) ? state.copied : "";
  const isLast = state.views.chat.turns.at(-1) === turn;
  return memo(own, [turn, wait, record, copied, isLast, name], () => h("article", null,
    h("h3", { class: "hidden-text" }, "You"),
    h("p", { class: "asked", dir: "auto" }, asked),
    h("h3", { class: "answerer" }, name),
    answer.thought && h("details", { key: "thought", class: "thought" },
      h("summary", null, answer.text || answer.ended_ms ? "Thoughts" : "Thinking…"), h("p", { dir: "auto" }, answer.thought)),
    h("div", { key: "text", class: "markdown", dir: "auto" }, markdown(answer.text, { id: own, copied, level: 4 })),
    wait && h("p", { key: "wait", class: "wait" }, wait),
    answer.refusal && refusalView(answer.refusal),
    answer.ended_ms !== null && h("div", { key: "end", class: "answer-end" },
      h("ul", { class: "numbers" }, numbers(answer, record).map((each, index) => h("li", { key: index }, each))),
      h("div", { class: "actions" },
        answer.text && copyButton(`${own}-source`, copied, answer),
        isLast && h("button", { type: "button", class: "plain", "data-action": "chat/again" }, answer.refusal ? "Try again" : "Regenerate")))));
}

/** Copies what the model wrote, not how it is shown. @param {string} id @param {string} copied @param {Answer} answer */
const copyButton = (id, copied, { text }) => h("button", { type: "button", class: "plain", "data-action": "copy", "data-key": id },
  copied === id ? "Copied" : "Copy", h("span", { class: "hidden-text" }, " the answer"), h("span", { id, hidden: true }, text));

/** @param {Refusal} refusal */
function refusalView({ status, code, detail, supervisor }) {
  const { state, progress, cause, retry_after_s } = supervisor ?? {};
  const facts = [
    status ? `HTTP ${status}` : "", code, state, progress != null && `${percent(progress, 1)} % loaded`,
    retry_after_s && `try again in ${duration(retry_after_s)}`,
  ];
  return h("div", { key: "refusal", class: "message bad", role: "alert" },
    h("p", null, `${detail[0].toUpperCase()}${detail.slice(1)}`.replace(/[^.!?]$/, "$&.")),
    cause && h("p", null, typeof cause === "string" ? cause : cause.sentence),
    h("p", { class: "small" }, facts.filter(Boolean).join(" · ")));
}

/** @param {Chat} chat @param {boolean} hasDeployment */
function composer(chat, hasDeployment) {
  const { draft, options } = chat;
  const option = (/** @type {string} */ name, /** @type {string} */ label, /** @type {object} */ more) => h("div", { class: "field" },
    h("label", { for: `chat-${name}` }, label),
    h("input", { id: `chat-${name}`, name, value: options[name] ?? "", "data-action": "chat/option", ...more }));
  return h("form", { class: "composer", "data-submit": "chat/send" },
    h("div", { class: "ask" },
      h("label", { for: "chat-message", class: "hidden-text" }, "Message"),
      h("textarea", { id: "chat-message", name: "message", rows: 2, dir: "auto", placeholder: "Ask something",
        "data-action": "chat/draft", "data-keydown": "chat/key" }, draft),
      // One element, so that it keeps the focus.
      running(chat) ? h("button", { type: "button", class: "danger", "data-action": "chat/stop" }, "Stop")
        : h("button", { type: "submit", class: "primary", disabled: !hasDeployment }, "Send")),
    h("details", null, h("summary", null, "More"), h("div", { class: "options" },
      option("system", "System prompt", { placeholder: "none" }),
      option("temperature", "Temperature", { type: "number", min: 0, max: 5, step: 0.1, placeholder: "the engine’s" }),
      option("max_tokens", "Most tokens", { type: "number", min: 1, step: 1, placeholder: "no limit" }))));
}
