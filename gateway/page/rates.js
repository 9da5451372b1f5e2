// The numbers of this moment, each with its last hour as a line.

import { may } from "./access.js";
import { call } from "./api.js";
import { byId, el, setText, svg } from "./dom.js";
import { clock, number } from "./format.js";
import { poll } from "./poll.js";

const HOUR_S = 3600;
const [WIDTH, HEIGHT] = [360, 44];

const TILES = [
  { name: "Waiting", unit: "jobs", of: (sample) => sample.num_waiting, now: (status) => status.queue.num_waiting },
  { name: "Running", unit: "jobs", of: (sample) => sample.num_running, now: (status) => status.jobs.running ?? 0 },
  { name: "Captions", unit: "per second", of: (sample) => sample.captions_per_s, now: (status) => status.conductor?.captions_per_s ?? 0 },
  { name: "Tokens", unit: "per second", of: (sample) => sample.tokens_per_s, now: (status) => status.conductor?.tokens_per_s ?? 0 },
  { name: "Failed", unit: "in this hour", of: (sample, first) => Math.max(0, sample.num_failed - first.num_failed) },
].map((tile) => ({ ...tile, ...build(tile) }));

export function start() {
  byId("tiles").replaceChildren(...TILES.map((tile) => tile.node));
  poll(async () => {
    const history = may("read") && (await call("v1/rates").catch(() => null));
    if (history) for (const tile of TILES) draw(tile, history);
  }, 10000);
}

export function show(status) {
  for (const tile of TILES) if (tile.now) setText(tile.value, number(tile.now(status)));
}

function build({ name, unit }) {
  const value = el("b", { text: "–" });
  const peak = el("span", { class: "muted" });
  const area = svg("path", { class: "area" });
  const line = svg("path", { class: "line" });
  const chart = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" }, area, line);
  const head = el("p", {}, el("span", { text: name }), peak);
  const node = el("div", { class: "tile" }, head, el("p", { class: "big" }, value, el("span", { class: "muted", text: ` ${unit}` })), chart, el("p", { class: "axis muted" }, el("span", { text: "1 h ago" }), el("span", { text: "now" })));
  return { node, value, peak, area, line, chart };
}

function draw(tile, { samples, interval_s: interval }) {
  const points = samples.map((sample) => ({ at: sample.at, value: tile.of(sample, samples[0]) }));
  const most = Math.max(0, ...points.map((point) => point.value));
  const last = points.at(-1);
  if (!tile.now) setText(tile.value, number(last?.value ?? 0));
  setText(tile.peak, most ? `most ${number(most)}` : "");
  const runs = last ? unbroken(points, 3 * interval) : [];
  const place = ({ at, value }) => `${(WIDTH * (1 - (last.at - at) / HOUR_S)).toFixed(1)} ${(HEIGHT - 1 - (HEIGHT - 4) * (most ? value / most : 0)).toFixed(1)}`;
  const line = runs.map((run) => `M${run.map(place).join("L")}`);
  tile.line.setAttribute("d", line.join(""));
  tile.area.setAttribute("d", runs.map((run, index) => `${line[index]}V${HEIGHT}H${place(run[0]).split(" ")[0]}Z`).join(""));
  tile.chart.setAttribute("aria-label", `${tile.name} over the last hour: ${points.length ? `between ${number(Math.min(...points.map((point) => point.value)))} and ${number(most)}` : "nothing yet"}`);
  tile.chart.onpointermove = (event) => setText(tile.peak, readout(points, last, event));
  tile.chart.onpointerleave = () => setText(tile.peak, most ? `most ${number(most)}` : "");
}

/** Cuts where nobody was there to take samples. */
function unbroken(points, most) {
  const runs = [];
  for (const point of points) {
    if (!runs.length || point.at - runs.at(-1).at(-1).at > most) runs.push([]);
    runs.at(-1).push(point);
  }
  return runs;
}

function readout(points, last, event) {
  if (!last) return "";
  const box = event.currentTarget.getBoundingClientRect();
  const at = last.at - HOUR_S * (1 - (event.clientX - box.left) / box.width);
  const near = points.reduce((best, point) => (Math.abs(point.at - at) < Math.abs(best.at - at) ? point : best));
  return `${clock(near.at)}  ${number(near.value)}`;
}
