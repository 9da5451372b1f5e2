// The form: one picture, one question, and the answer as it comes.

import { whyNot } from "./access.js";
import { call } from "./api.js";
import { announce, byId, setText } from "./dom.js";
import { seconds } from "./format.js";
import { captionOf } from "./job_entry.js";
import { own, refresh } from "./jobs.js";
import { words } from "./live_words.js";

let picture = null;
let current = null;

export function start() {
  byId("ask-form").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  byId("ask-prompt").addEventListener("keydown", (event) => event.key === "Enter" && (event.ctrlKey || event.metaKey) && send());
  byId("ask-picture").addEventListener("change", ({ target }) => target.files.length && take(target.files[0]));
  document.addEventListener("paste", ({ clipboardData }) => clipboardData?.files.length && take(clipboardData.files[0]));
  for (const name of ["dragover", "dragleave", "drop"]) document.addEventListener(name, drag);
}

/** Offers what the key may do. */
export function offer() {
  const reason = whyNot("submit", "ask");
  for (const each of byId("ask-form").elements) each.disabled = Boolean(reason);
  say(reason || whyNot("read", "see answers"));
}

function drag(event) {
  if (!event.dataTransfer?.types.includes("Files")) return;
  event.preventDefault();
  byId("drop").classList.toggle("over", event.type === "dragover");
  if (event.type === "drop" && event.dataTransfer.files.length) take(event.dataTransfer.files[0]);
}

function take(file) {
  if (whyNot("submit", "ask")) return;
  picture = file;
  const shown = byId("drop-shown");
  URL.revokeObjectURL(shown.src);
  shown.src = URL.createObjectURL(file);
  shown.hidden = false;
  shown.onerror = () => (shown.hidden = true);
  setText(byId("drop-hint"), file.name);
  say("");
}

async function send() {
  if (byId("ask-send").disabled) return;
  const form = new FormData();
  const [prompt, tokens] = [byId("ask-prompt").value.trim(), byId("ask-tokens").value];
  if (!picture && !prompt) return say("Choose a picture, or write a question.");
  if (picture) form.append("image", picture);
  if (prompt) form.append("prompt", prompt);
  if (tokens) form.append("max_tokens", tokens);
  byId("ask-send").disabled = true;
  byId("answer").hidden = true;
  say("Sending …");
  try {
    const { job_id: jobId } = await call("v1/jobs", { method: "POST", body: form, headers: { "Idempotency-Key": newKey() }, timeoutMs: 300000 });
    own.add(jobId);
    refresh();
    follow(jobId);
  } catch (error) {
    say(`Not accepted: ${error.message}${error.field ? ` (${error.field})` : ""}.`);
  } finally {
    byId("ask-send").disabled = false;
  }
}

async function follow(jobId) {
  current?.abort();
  const stop = (current = new AbortController());
  const answer = byId("answer");
  setText(answer, "");
  answer.hidden = Boolean(whyNot("read", ""));
  if (answer.hidden) return say(`Accepted as job ${jobId}. ${whyNot("read", "see answers")}`);
  say("Accepted; it waits for its turn.");
  while (current === stop) {
    const record = await words(jobId, stop.signal, (text) => {
      setText(answer, text);
      say("Answering …");
    }).catch(() => null);
    if (record) return end(record);
    await new Promise((resolve) => setTimeout(resolve, 1000)); // the stream broke: it is asked for again
  }
}

function end({ status, result, error, started_at, finished_at }) {
  if (result) {
    setText(byId("answer"), captionOf(result));
    announce(`Answer: ${captionOf(result)}`);
  }
  say(error ? `It failed: ${error.message} (${error.code}).` : status === "cancelled" ? "It was stopped." : `Answered in ${seconds(finished_at - started_at)}.`);
  refresh();
}

/** A name for this submission: `randomUUID` is there on safe origins only. */
const newKey = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
const say = (text) => setText(byId("ask-note"), text);
