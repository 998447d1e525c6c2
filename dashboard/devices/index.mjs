// @ts-check
/** @import { View } from "../types.mjs" */

import { actions } from "./actions.mjs";
import { initial, reduce } from "./state.mjs";
import { devicesView } from "./view.mjs";

/** @type {View} */
export const devices = { name: "devices", title: "Devices", initial, reduce, render: devicesView, actions };
