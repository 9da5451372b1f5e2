// Starts everything, and says how things are.

import * as access from "./access.js";
import { call, readiness } from "./api.js";
import * as ask from "./ask.js";
import { byId, setText } from "./dom.js";
import { clock } from "./format.js";
import * as dialog from "./job_dialog.js";
import * as jobs from "./jobs.js";
import * as pipeline from "./pipeline.js";
import { poll } from "./poll.js";
import * as rates from "./rates.js";

const HEALTH_MS = 5000;
const STATUS_MS = 2000;
let isReading = false;
let shownAt = 0;

dialog.start();
ask.start();
access.start(() => {
  ask.offer();
  for (const section of document.querySelectorAll("[data-needs]")) section.hidden = !access.may(section.dataset.needs);
  if (isReading) jobs.restart();
  else if (access.may("read")) read();
});
poll(showHealth, HEALTH_MS);

function read() {
  isReading = true;
  rates.start();
  jobs.start();
  poll(showStatus, STATUS_MS);
}

async function showStatus() {
  if (!access.may("read")) return;
  try {
    const status = await call("v1/status");
    setText(byId("identity"), [status.conductor?.model, status.pipeline === "main" ? "" : `pipeline ${status.pipeline}`].filter(Boolean).join(" · "));
    rates.show(status);
    pipeline.show(status);
    jobs.showCounts(status.jobs);
    shownAt = Date.now() / 1000;
    trouble(null);
  } catch (error) {
    if (error.status !== 401) trouble(error);
  }
}

/** What is shown stays, paler, while nothing newer is to be had. */
function trouble(error) {
  document.body.classList.toggle("stale", Boolean(error));
  document.body.classList.toggle("away", error?.status === 0);
  byId("trouble").hidden = !error;
  if (error) setText(byId("trouble"), `${error.message.replace(/\.$/, "")}. ${shownAt ? `The pipeline is shown as of ${clock(shownAt)}; this` : "This"} page goes on asking.`);
}

async function showHealth() {
  const { ready, checks } = await readiness();
  const missing = Object.entries(checks ?? {}).filter(([, said]) => said !== "ok" && said !== "unknown");
  const chip = byId("health");
  chip.className = `chip ${ready ? "good" : "bad"}`;
  const why = missing.map(([part, said]) => `${part}: ${said}`).join("; ");
  setText(chip, ready ? "ready" : ready === undefined ? "no answer" : why ? `not ready: ${why}` : "not ready");
}
