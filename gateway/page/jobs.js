// Jobs, newest first: the first page stays live, older ones and what a search found are added below.

import { may, seesAll } from "./access.js";
import { call } from "./api.js";
import { announce, byId, el, setText } from "./dom.js";
import { number, plural } from "./format.js";
import { JobEntry } from "./job_entry.js";
import { openJob } from "./job_dialog.js";
import { follow } from "./live_words.js";
import { poll } from "./poll.js";

const PAGE = 24;
const ANNOUNCE_MS = 5000;
const FILTERS = [["", "All"], ["queued", "Waiting"], ["running", "Running"], ["succeeded", "Done"], ["failed", "Failed"], ["cancelled", "Stopped"]];
const COUNTED = ["queued", "running"]; // what has ended is counted for ever, and listed for a week

const entries = new Map();
let chosen = { status: "", search: "" };
let older = [];
let next = null;
let arrived = [];
let announcedAt = 0;
let heldUntil = 0;

export function start() {
  byId("filters").append(...FILTERS.map(([status, name]) => tab(status, name)));
  byId("more").addEventListener("click", showMore);
  byId("search").addEventListener("submit", (event) => event.preventDefault());
  let typing = 0;
  byId("search-text").addEventListener("input", ({ target }) => {
    clearTimeout(typing);
    typing = setTimeout(() => choose({ search: target.value.trim() }), 300);
  });
  refresh = poll(async () => may("read") && !chosen.search && live(), 2000);
}

/** Forgets what is shown: another key may see other jobs. */
export const restart = () => choose({});

/** Jobs whose ends are told elsewhere. */
export const own = new Set();

/** Looks again at once. */
export let refresh = () => {};

export function showCounts(counts) {
  for (const status of COUNTED) setText(byId(`count-${status}`), seesAll() && counts[status] ? number(counts[status]) : "");
}

function tab(status, name) {
  const input = el("input", { type: "radio", name: "status", value: status, id: `filter-${status || "all"}`, on: { change: () => choose({ status }) } });
  input.checked = !status;
  return el("label", {}, input, el("span", {}, name, COUNTED.includes(status) ? el("b", { id: `count-${status}` }) : null));
}

function choose(change) {
  chosen = { ...chosen, ...change };
  [older, next, arrived] = [[], null, []];
  entries.clear();
  byId("list").replaceChildren();
  say("", 1);
  return chosen.search ? search() : refresh();
}

async function live() {
  const asked = chosen;
  const page = await ask({}).catch((error) => note(error));
  if (!page || asked !== chosen) return;
  if (!older.length) next = page.next;
  const first = new Set(page.jobs.map((record) => record.job_id));
  older = older.filter((record) => !first.has(record.job_id));
  show([...page.jobs, ...older]);
  say(page.jobs.length ? unreadable(page) : emptiness());
}

async function showMore() {
  if (chosen.search) return search();
  const asked = chosen;
  const page = await ask({ after: next }).catch((error) => note(error));
  if (!page || asked !== chosen) return;
  next = page.next;
  older.push(...page.jobs);
  await refresh();
}

async function search() {
  const asked = chosen;
  say("Searching …", 1);
  const page = await ask({ search: chosen.search, after: next }).catch((error) => note(error));
  if (!page || asked !== chosen) return;
  next = page.next;
  older.push(...page.jobs);
  show(older);
  const where = next ? `Looked through ${plural(page.num_searched, "more job")}; there are older ones.` : "Looked through all of them.";
  say(`${older.length ? plural(older.length, "job") : "Nothing"} found. ${where}`, 1);
}

function ask(query) {
  const all = { limit: PAGE, status: chosen.status, ...query };
  return call(`v1/jobs?${new URLSearchParams(Object.entries(all).filter(([, value]) => value))}`);
}

function show(records) {
  const list = byId("list");
  const known = new Set(records.map((record) => record.job_id));
  for (const [jobId, entry] of entries) if (!known.has(jobId)) { entry.node.remove(); entries.delete(jobId); }
  records.forEach((record, index) => {
    const entry = entries.get(record.job_id);
    if (entry) noteEnd(entry.record, record);
    if (entry) entry.show(record);
    else entries.set(record.job_id, new JobEntry(record, openJob, changed));
    const { node } = entries.get(record.job_id);
    if (list.children[index] !== node) list.insertBefore(node, list.children[index] ?? null);
  });
  byId("more").hidden = !next;
  setText(byId("more"), chosen.search ? "Search older jobs" : "Older jobs");
  follow(records.map((record) => entries.get(record.job_id)));
  tell();
}

function noteEnd(before, after) {
  if (before.status !== after.status && !own.has(after.job_id) && after.status === "succeeded") arrived.push(after.result.text);
}

/** Says which captions have come, a few at a time: whoever listens shall not be flooded. */
function tell() {
  if (!arrived.length || Date.now() - announcedAt < ANNOUNCE_MS) return;
  announcedAt = Date.now();
  announce(arrived.length === 1 ? `New caption: ${arrived[0]}` : `${arrived.length} new captions.`);
  arrived = [];
}

function changed(error) {
  if (error) say(error, 10000);
  else refresh();
}

const note = (error) => say(error.code === "invalid_request" ? error.message : "");

/** Says something above the list; for `ms` nothing else takes its place, but for what is held as well. */
function say(text, ms = 0) {
  if (!ms && Date.now() < heldUntil) return;
  heldUntil = Date.now() + ms;
  setText(byId("jobs-note"), text);
}

const unreadable = (page) => (page.num_unreadable ? `${plural(page.num_unreadable, "job")} cannot be read, and not shown.` : "");
const emptiness = () => (chosen.status ? "No such jobs." : "No jobs yet: ask about a picture, or run broker-pipeline caption.");
