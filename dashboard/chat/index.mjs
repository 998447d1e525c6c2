// @ts-check
/** @import { View } from "../types.mjs" */

import { chatActions } from "./actions.mjs";
import { initial, reduce } from "./state.mjs";
import { render } from "./view.mjs";

/** @type {View} */
export const chat = { name: "chat", title: "Chat", initial, reduce, render, actions: chatActions };
