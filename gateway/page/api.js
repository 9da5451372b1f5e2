// Asks the gateway that this page came from. Paths are relative, so that a proxy may put it below a path.

const KEY = "broker-pipeline-key";
const TIMEOUT_MS = 15000;

/** Whatever was not done; `status` is 0 where nobody answered. */
export class ApiError extends Error {
  constructor(status, { code = "unreachable", message, field, request_id } = {}) {
    super(message);
    Object.assign(this, { status, code, field, requestId: request_id });
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (text) => (text ? sessionStorage.setItem(KEY, text) : sessionStorage.removeItem(KEY)),
};

/** Asks, and returns the answer's JSON. Throws `ApiError`; a 401 is also told to whoever listens for `key-needed`. */
export async function call(path, options = {}) {
  const answer = await ask(path, { signal: AbortSignal.timeout(options.timeoutMs ?? TIMEOUT_MS), ...options });
  return answer.json().catch(() => Promise.reject(new ApiError(answer.status, { message: "The answer is not JSON: is this the gateway?" })));
}

/** Says whether jobs will be run now, and to operators what is missing; nothing where nobody answers. */
export const readiness = () =>
  fetch("readyz", { headers: authorization(), signal: AbortSignal.timeout(TIMEOUT_MS), cache: "no-store" }).then((answer) => answer.json()).catch(() => ({}));

/** Yields a job's events: `{kind, tokens, record}`. Ends when the stream does. */
export async function* events(jobId, signal) {
  const answer = await ask(`v1/jobs/${jobId}/events`, { signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const data = block.split("\n").find((line) => line.startsWith("data: "));
        if (data) yield JSON.parse(data.slice(6));
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

const authorization = () => (key.get() ? { Authorization: `Bearer ${key.get()}` } : {});

async function ask(path, { method = "GET", body, headers = {}, signal }) {
  const sent = { ...authorization(), ...headers };
  let answer;
  try {
    answer = await fetch(path, { method, body, headers: sent, signal, cache: "no-store", credentials: "same-origin" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, { message: error.name === "TimeoutError" ? "The gateway takes too long to answer." : "The gateway does not answer." });
  }
  if (answer.ok) return answer;
  const { error } = await answer.json().catch(() => ({}));
  const failed = new ApiError(answer.status, error ?? { code: "http", message: `The answer has the status ${answer.status}.` });
  if (answer.status === 401) document.dispatchEvent(new CustomEvent("key-needed", { detail: failed }));
  throw failed;
}
