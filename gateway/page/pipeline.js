// The pipeline as a picture: hosts, the workers on them, and what passes between.
//
//   vision ──shm 2 MB/s──► stage, blocks 0–11 ──tcp 9 MB/s──► stage, blocks 12–23        one line for each route

import { byId, el } from "./dom.js";
import { bytes, number, percent } from "./format.js";

const seen = new Map();

export function show(status) {
  byId("picture").replaceChildren(...picture(status));
}

function picture(status) {
  const { conductor } = status;
  const records = new Map(status.workers.map((record) => [record.worker, record]));
  if (!conductor) return [notice("No conductor is active. Jobs wait until one is."), ...hosts(status.workers.map((record) => workerBox(record.worker, record)))];
  const stages = new Map(conductor.stages.map((stage) => [stage.worker, stage]));
  const rates = edgeRates(conductor);
  const routed = new Set(conductor.routes.flatMap((route) => route.workers));
  const depth = Math.max(1, ...stagesOf(status).map((record) => record.num_layers), ...conductor.stages.map((stage) => stage.blocks.stop));
  const stageBox = (worker) => workerBox(worker, records.get(worker), stages.get(worker), depth);
  const lines = conductor.routes.map((route) => line(route.workers.map(stageBox), route.workers.map((worker) => rates.get(worker)), route));
  const spare = conductor.stages.filter((stage) => !routed.has(stage.worker)).map((stage) => [stage.blocks.start, stageBox(stage.worker)]);
  const gaps = conductor.missing_blocks.map((blocks) => [blocks.start, gap(blocks)]);
  const loose = [...spare, ...gaps].sort(([a], [b]) => a - b).map(([, node]) => node);
  const vision = conductor.vision.map((worker) => workerBox(worker.worker, records.get(worker.worker), worker));
  const columns = el("div", { class: "columns" });
  if (vision.length) columns.append(el("div", { class: "column" }, el("h3", { text: "Vision" }), ...hosts(vision)), edge(sum(conductor.vision.map((worker) => rates.get(worker.worker)))));
  columns.append(el("div", { class: `column wide${lines.length > 1 && conductor.routes.every((route) => route.workers.length === 1) ? " copies" : ""}` }, el("h3", { text: lines.length ? "Stages" : "Stages: no complete route" }), ...lines, ...(loose.length ? [el("ol", { class: "line loose" }, ...hosts(loose, "li"))] : [])));
  return [...warnings(conductor), columns];
}

function warnings(conductor) {
  const waits = conductor.waits_for ? [notice(`No further job is taken: ${conductor.waits_for}.`, "quiet")] : [];
  const blind = conductor.vision.length ? [] : [notice("No vision worker is there: questions about pictures wait.")];
  return [...waits, ...blind, ...conductor.refused.map((worker) => notice(`${worker.worker} is not used: ${worker.reason}`))];
}

/** One route; neighbours on one host share its frame. */
function line(boxes, rates, route) {
  const items = [];
  hosts(boxes, "li").forEach((host, index, all) => {
    items.push(host);
    if (index < all.length - 1) items.push(edge(rates[host.lastWorker], "li"));
  });
  const label = `Route over ${route.workers.join(", ")}: ${number(route.num_sessions)} sessions, ${number(route.num_in_flight)} microbatches under way`;
  return el("ol", { class: "line", "aria-label": label }, ...items);

  function hosts(list, name) {
    return group(list).map((run) => {
      const frame = frameOf(run, name);
      frame.lastWorker = list.indexOf(run.at(-1));
      const inner = run.flatMap((node, index) => (index < run.length - 1 ? [node, edge(rates[list.indexOf(node)])] : [node]));
      frame.replaceChildren(frame.firstChild, ...inner);
      return frame;
    });
  }
}

const hosts = (boxes, name = "div") => group(boxes).map((run) => frameOf(run, name));

function frameOf(run, name) {
  const frame = el(name, { class: "host" }, el("p", { class: "muted host-name", text: run[0].host }), ...run);
  frame.style.setProperty("--workers", run.length);
  return frame;
}

function group(boxes) {
  const runs = [];
  for (const node of boxes) {
    if (runs.length && runs.at(-1)[0].host === node.host) runs.at(-1).push(node);
    else runs.push([node]);
  }
  return runs;
}

function workerBox(worker, record, shown, depth) {
  const blocks = shown?.blocks ?? record?.blocks;
  const state = shown?.state ?? record?.state ?? "gone";
  const node = el("article", { class: `worker ${state}` },
    el("h4", {}, el("span", { text: worker }), state === "ready" ? null : el("span", { class: "chip warn", text: state, title: shown?.reason || null })),
    el("p", { class: "muted", text: blocks && `blocks ${blocks.start}–${blocks.stop - 1}` }),
    record?.device ? el("p", { class: "muted", text: record.device }) : null,
    blocks && depth ? span(blocks, depth) : null,
    shown ? meter("busy", shown.busy, percent(shown.busy), shown.bubble) : null,
    shown?.kv_capacity_tokens ? meter("KV", shown.kv_used_tokens / shown.kv_capacity_tokens, `${number(shown.kv_used_tokens)}/${number(shown.kv_capacity_tokens)}`) : null,
    shown?.num_preparing != null ? el("p", { class: "muted", text: `${number(shown.num_preparing)} being prepared` }) : null,
    shown?.reason ? el("p", { class: "reason", text: shown.reason }) : null);
  node.host = record?.host || "host unknown";
  return node;
}

function gap(blocks) {
  const node = el("article", { class: "worker gap" }, el("h4", { text: `blocks ${blocks.start}–${blocks.stop - 1}` }), el("p", { text: "no worker holds them" }));
  node.host = "";
  return node;
}

/** Which part of the model a stage has. */
function span(blocks, depth) {
  const filled = el("i");
  filled.style.left = `${(100 * blocks.start) / depth}%`;
  filled.style.width = `${(100 * (blocks.stop - blocks.start)) / depth}%`;
  return el("div", { class: "span", "aria-hidden": "true" }, filled);
}

function meter(name, share, text, waits = 0) {
  const filled = el("i");
  filled.style.width = `${100 * Math.min(1, share)}%`;
  const rest = el("i", { class: "waits" });
  rest.style.width = `${100 * Math.min(1 - Math.min(1, share), waits)}%`;
  const title = waits ? `${percent(waits)} of the time it held sessions and had nothing to compute` : null;
  return el("div", { class: `meter ${name.toLowerCase()}`, title }, el("span", { text: name }), el("div", { class: "track", "aria-hidden": "true" }, filled, rest), el("span", { class: "figure", text }));
}

function edge(rates = {}, name = "div") {
  const kinds = Object.entries(rates).map(([kind, rate]) => el("span", {}, el("b", { text: kind }), ` ${rate == null ? "…" : `${bytes(rate)}/s`}`));
  return el(name, { class: "edge" }, el("span", { class: "arrow", "aria-hidden": "true" }), el("span", { class: "kinds" }, ...kinds));
}

/** What every process sends by each kind of edge, in bytes per second since the last look. */
function edgeRates({ transport, updated_at: at }) {
  const rates = new Map();
  for (const [process, { carried }] of Object.entries(transport)) {
    const last = seen.get(process);
    if (last?.at === at) {
      rates.set(process, last.rates);
      continue;
    }
    const used = Object.entries(carried).filter(([, counts]) => counts.num_bytes);
    const own = Object.fromEntries(used.map(([kind, counts]) => [kind, last ? Math.max(0, (counts.num_bytes - (last.carried[kind]?.num_bytes ?? 0)) / (at - last.at)) : null]));
    seen.set(process, { at, carried, rates: own });
    rates.set(process, own);
  }
  return rates;
}

function sum(all) {
  const total = {};
  for (const rates of all) for (const [kind, rate] of Object.entries(rates ?? {})) total[kind] = rate == null ? (total[kind] ?? null) : (total[kind] ?? 0) + rate;
  return total;
}

const stagesOf = (status) => status.workers.filter((record) => record.role === "stage");
const notice = (text, kind = "") => el("p", { class: `notice ${kind}`, text });
