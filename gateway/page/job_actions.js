// What can be done with a job; what the key may not do is not offered.

import { may } from "./access.js";
import { call } from "./api.js";
import { announce, el } from "./dom.js";

const ACTIONS = [
  { name: "Send again", done: "Sent again.", on: ["failed", "cancelled"], ask: (id) => call(`v1/jobs/${id}/retry`, { method: "POST" }) },
  { name: "Forget", done: "Forgotten.", on: ["failed"], ask: (id) => call(`v1/jobs/${id}`, { method: "DELETE" }) },
  { name: "Stop", done: "Stopped.", on: ["queued", "running"], ask: (id) => call(`v1/jobs/${id}`, { method: "DELETE" }) },
];

/** Buttons for a job; `onChange(error)` is called when one has been pressed and answered. */
export function actions(record, onChange) {
  if (!may("submit")) return [];
  return ACTIONS.filter(({ on }) => on.includes(record.status)).map((action) => button(action, record.job_id, onChange));
}

function button({ name, done, ask }, jobId, onChange) {
  const node = el("button", { type: "button", text: name, "aria-label": `${name}: job ${jobId}`, on: { click: press } });
  return node;

  async function press() {
    node.disabled = true;
    const error = await ask(jobId).then(() => null, (failed) => failed);
    announce(error ? `${name}: ${error.message}` : done);
    node.disabled = false;
    onChange(error && `${name} did not work: ${error.message}.`, jobId);
  }
}
