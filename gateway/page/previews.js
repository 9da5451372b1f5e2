// What jobs were asked, and their pictures made small: each job is asked about once.

import { call } from "./api.js";
import { limited } from "./poll.js";

const MOST_KEPT = 1000;
const kept = new Map();
const soon = limited(3);

/** Shows a job's question and picture in the elements given, now or as soon as they are known. */
export function showPreview(jobId, { prompt, thumb }) {
  if (!kept.has(jobId)) kept.set(jobId, ask(jobId));
  if (kept.size > MOST_KEPT) kept.delete(kept.keys().next().value);
  kept.get(jobId).then((preview) => {
    prompt.textContent = preview.prompt;
    thumb.replaceChildren(...pictures(preview));
    thumb.title = preview.why_none ?? "";
  }, () => kept.delete(jobId));
}

function ask(jobId) {
  return new Promise((resolve, reject) => soon(() => call(`v1/jobs/${jobId}/preview`).then(resolve, reject)));
}

function pictures({ thumbnail, num_images, num_videos, why_none }) {
  const more = num_images + num_videos - 1;
  const badge = document.createElement("span");
  badge.textContent = thumbnail ? (more > 0 ? `+${more}` : "") : num_images + num_videos === 0 ? "text" : why_none?.includes("let go") ? "let go" : "no picture";
  badge.className = thumbnail ? "badge" : "none";
  if (!thumbnail?.startsWith("data:image/jpeg;base64,")) return [badge];
  const image = document.createElement("img");
  image.alt = "";
  image.src = thumbnail;
  return [image, badge];
}
