// Who this page asks for: the key, which this tab keeps, and what it allows.

import { call, key } from "./api.js";
import { byId, setText } from "./dom.js";

let scopes = new Set();
let tenant = "";

export const may = (scope) => scopes.has(scope) || scopes.has("operate");

/** Whether everybody's jobs are listed. */
export const seesAll = () => !tenant;

/** Why something is not offered; empty where it is. */
export const whyNot = (scope, what) => (may(scope) ? "" : `This key may not ${what}: it lacks the scope “${scope}”.`);

/** Asks for a key where one is wanted; calls `onChange` whenever it is known anew what the page may do. */
export function start(onChange) {
  const dialog = byId("key-dialog");
  byId("key-button").addEventListener("click", () => open(""));
  document.addEventListener("key-needed", ({ detail }) => open(key.get() ? detail.message : ""));
  byId("key-forget").addEventListener("click", () => use(""));
  byId("key-form").addEventListener("submit", () => use(byId("key-text").value.trim()));
  return learn();

  function open(why) {
    byId("key-button").hidden = false;
    setText(byId("key-why"), why && `${why[0].toUpperCase()}${why.slice(1)}.`);
    byId("key-forget").hidden = !key.get();
    if (!dialog.open) dialog.showModal();
  }

  function use(text) {
    key.set(text);
    byId("key-text").value = "";
    dialog.close();
    learn();
  }

  async function learn() {
    try {
      const caller = await call("v1/caller");
      scopes = new Set(caller.scopes);
      tenant = caller.tenant;
      byId("key-button").hidden = !caller.has_key;
      setText(byId("key-button"), tenant ? `Key of ${tenant}` : "Key");
      if (dialog.open) dialog.close();
      onChange();
    } catch (error) {
      if (error.status !== 401) setTimeout(learn, 3000);
    }
  }
}
