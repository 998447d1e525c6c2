// @ts-check
/** @import { View } from "../types.mjs" */

import { actions, effect } from "./actions.mjs";
import { INITIAL, reduce } from "./state.mjs";
import { deploymentsView } from "./view.mjs";

/** @type {View} */
export const deployments = {
  name: "deployments", title: "Deployments", initial: INITIAL, reduce, render: deploymentsView, actions, effect,
};
