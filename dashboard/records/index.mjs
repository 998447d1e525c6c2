// @ts-check
/** @import { View } from "../types.mjs" */

import { effect, initial, recordsActions, reduce } from "./state.mjs";
import { render } from "./view.mjs";

/** @type {View} */
export const records = { name: "records", title: "Records", initial, reduce, render, actions: recordsActions, effect };
