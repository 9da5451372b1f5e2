// Everything about one job.

import { byId, el } from "./dom.js";
import { clock, number, seconds } from "./format.js";
import { captionOf } from "./job_entry.js";
import { showPreview } from "./previews.js";

export function start() {
  const dialog = byId("job-dialog");
  byId("job-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
}

export function openJob(record) {
  const prompt = el("p", { class: "prompt" });
  const thumb = el("div", { class: "thumb large" });
  const { result } = record;
  showPreview(record.job_id, { prompt, thumb });
  byId("job-body").replaceChildren(
    el("div", { class: "row top" }, thumb, el("div", { class: "words" }, el("h3", { text: "Question" }), prompt)),
    ...(result?.reasoning ? [el("h3", { text: "Reasoning" }), el("p", { class: "caption muted", text: result.reasoning })] : []),
    ...(result ? [el("h3", { text: "Answer" }), el("p", { class: "caption", text: captionOf(result) })] : []),
    ...(record.error ? [el("h3", { text: "Reason of the failure" }), el("p", { class: "caption", text: failure(record.error) })] : []),
    el("h3", { text: "Facts" }),
    el("dl", {}, ...facts(record).flatMap(([name, value]) => [el("dt", { text: name }), el("dd", { text: value })])),
  );
  byId("job-dialog").showModal();
}

const failure = ({ message, code, field }) => `${message} (${code}${field ? `, ${field}` : ""})`;

function facts(record) {
  const { result } = record;
  const rows = [
    ["Job", record.job_id],
    ["Status", record.status],
    ["Tenant", record.tenant],
    ["Sent", clock(record.created_at)],
    ["Waited", record.started_at && seconds(record.started_at - record.created_at)],
    ["Ran", record.finished_at && record.started_at && seconds(record.finished_at - record.started_at)],
    ["Attempts", record.attempt && number(record.attempt)],
    ["Sent again", record.num_retries && number(record.num_retries)],
    ["Model", result?.model],
    ["Tokens", result && `${number(result.usage.num_prompt_tokens)} in (${number(result.usage.num_visual_tokens)} of pictures), ${number(result.usage.num_output_tokens)} out`],
    ["Ended with", result?.finish_reason],
    ...Object.entries(record.metadata ?? {}).map(([name, value]) => [`metadata: ${name}`, value]),
    ...(record.failures ?? []).map((end) => [`Earlier, ${clock(end.finished_at)}`, end.error ? failure(end.error) : end.status]),
  ];
  return rows.filter(([, value]) => value);
}
