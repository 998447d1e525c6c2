// @ts-check
/** @import { View } from "../types.mjs" */

import { effect, settingsActions } from "./actions.mjs";
import { initial, reduce } from "./state.mjs";
import { render } from "./view.mjs";

/** @type {View} */
export const settings = { name: "settings", title: "Settings", initial, reduce, render, actions: settingsActions, effect };
