// Words of running jobs as they are sampled. A browser has six connections to a gateway, so only some jobs are followed.

import { events } from "./api.js";

const MOST = 3;
const followed = new Map();

/** Follows running jobs of the list, the newest first, and lets go of what is no longer there. */
export function follow(entries) {
  const wanted = entries.filter((entry) => entry.record.status === "running").slice(0, MOST);
  for (const [jobId, stop] of followed) if (!wanted.some((entry) => entry.record.job_id === jobId)) stop.abort();
  for (const entry of wanted) {
    const jobId = entry.record.job_id;
    if (followed.has(jobId)) continue;
    const stop = new AbortController();
    followed.set(jobId, stop);
    words(jobId, stop.signal, (text) => entry.say(text)).catch(() => null).finally(() => followed.delete(jobId));
  }
}

/** Tells `say` a job's text whenever it grows; returns its record when it has ended. */
export async function words(jobId, signal, say) {
  let text = "";
  for await (const { kind, tokens = [], record } of events(jobId, signal)) {
    if (kind === "restarted") text = "";
    text += tokens.map((token) => token.text ?? "").join("");
    if (text) say(text);
    if (kind === "finished") return record;
  }
  return null;
}
