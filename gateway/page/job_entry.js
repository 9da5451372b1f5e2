// One job in the list; it stays where it is while its words come in.

import { el, setText } from "./dom.js";
import { clock, plural, seconds } from "./format.js";
import { actions } from "./job_actions.js";
import { showPreview } from "./previews.js";

const WORDS = { queued: "waiting", running: "running", succeeded: "done", failed: "failed", cancelled: "stopped" };

export class JobEntry {
  constructor(record, onOpen, onChange) {
    this.prompt = el("p", { class: "prompt muted" });
    this.thumb = el("div", { class: "thumb" });
    this.caption = el("p", { class: "caption" });
    this.status = el("span", { class: "chip" });
    this.facts = el("span", { class: "muted facts" });
    this.buttons = el("span", { class: "actions" });
    this.onChange = onChange;
    const open = el("button", { type: "button", class: "link", text: "Details", "aria-label": `Details of job ${record.job_id}`, on: { click: () => onOpen(this.record) } });
    const foot = el("p", { class: "foot" }, this.status, this.facts, el("span", { class: "buttons" }, this.buttons, open));
    this.node = el("li", { class: "entry", "data-job": record.job_id }, this.thumb, el("div", { class: "words" }, this.prompt, this.caption, foot));
    showPreview(record.job_id, this);
    this.show(record);
  }

  show(record) {
    const changed = this.record?.status !== record.status || this.record?.num_retries !== record.num_retries;
    this.record = record;
    if (!changed && this.shown === record.finished_at) return;
    this.shown = record.finished_at;
    this.node.dataset.status = record.status;
    this.status.className = `chip ${record.status}`;
    setText(this.status, WORDS[record.status]);
    setText(this.facts, facts(record));
    if (changed) this.buttons.replaceChildren(...actions(record, this.onChange));
    if (record.result) this.say(captionOf(record.result));
    else if (record.error) this.say(`${record.error.message} (${record.error.code})`);
    else if (record.status === "queued") this.say("");
  }

  say(text) {
    setText(this.caption, text);
  }
}

/** All outputs of a job as one text. */
export function captionOf({ text, choices }) {
  return choices?.length > 1 ? choices.map((choice, index) => `${index + 1}. ${choice.text}`).join("\n") : text;
}

function facts(record) {
  const { created_at, started_at, finished_at, result } = record;
  const took = finished_at && started_at ? seconds(finished_at - started_at) : "";
  const tokens = result ? plural(result.usage.num_output_tokens, "token") : "";
  return [clock(finished_at ?? created_at), took, tokens].filter(Boolean).join(" · ");
}
