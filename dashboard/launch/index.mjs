// @ts-check
/** @import { View } from "../types.mjs" */

import { actions, effect } from "./actions.mjs";
import { initial, reduce } from "./state.mjs";
import { launchView } from "./view.mjs";

/** @type {View} */
export const launch = { name: "launch", title: "Launch", initial, reduce, render: launchView, actions, effect };
