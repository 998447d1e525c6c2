// @ts-check
/** @import { View } from "../types.mjs" */

import { actions, effect } from "./actions.mjs";
import { initial, reduce } from "./state.mjs";
import { modelsView } from "./view.mjs";

/** @type {View} */
export const models = { name: "models", title: "Models", initial, reduce, render: modelsView, actions, effect };
