// The matrix of scores and the map of skills.

import { byId, el, percent, put } from "./dom.js";
import { heatMap } from "./heat.js";
import { scatter } from "./scatter.js";

let scores = null;
let map = null;
let prompt = null;

/** Wires the controls; once. */
export function startSkills() {
  byId("measure").addEventListener("change", drawScores);
  new ResizeObserver(drawMap).observe(byId("map-body"));
}

/** @param found `/v1/pool/scores` */
export function showScores(found) {
  scores = found;
  const measured = found.accuracy.some((row) => row.some((value) => value !== null));
  if (!measured && found.changes.length) byId("measure").value = "loss";
  drawScores();
}

/** @param found `/v1/pool/map` */
export function showMap(found) {
  map = found;
  drawMap();
}

/** @param place x and y of the prompt that is being typed, or null */
export function placePrompt(place) {
  prompt = place;
  drawMap();
}

function drawScores() {
  if (scores === null) return;
  if (!scores.changes.length) {
    byId("scores-note").textContent = "";
    put(byId("scores-body"), el("p", { class: "soft" }, "Nothing has been learned yet."));
    return;
  }
  const measure = byId("measure").value;
  const values = scores[measure];
  const highest = Math.max(...values.flat().filter((value) => value !== null), 1e-9);
  byId("scores-note").textContent = (measure === "accuracy"
    ? "Share of right answers to each skill's validation rows, in percent."
    : "Loss of the answers in each skill's validation rows, in nats a token; lower is better.")
    + (scores.more ? ` The last ${scores.changes.length} changes.` : "");
  const rows = scores.changes.map((change, index) => ({
    name: `${change.revision} · ${change.note}`, title: change.note, values: values[index] }));
  const [shade, say] = measure === "accuracy"
    ? [(value) => value, (value) => (100 * value).toFixed(0)]
    : [(value) => value / highest, (value) => value.toFixed(2)];
  put(byId("scores-body"), heatMap(`${measure} of each skill after each change`, "after revision",
    scores.skills, rows, shade, say));
}

function drawMap() {
  const box = byId("map-body");
  if (map === null || !box.clientWidth) return;
  if (!map.points.length) {
    put(box, el("p", { class: "soft" }, "There is no skill yet."));
    return;
  }
  const points = map.points.map((point) => ({ label: point.skill,
    detail: `expert ${point.expert}, ${point.count} rows`, x: point.x, y: point.y, kind: "skill" }));
  points.push({ label: "no expert", detail: "the base's own prompts", kind: "foreign",
    x: map.foreign[0], y: map.foreign[1] });
  if (prompt) {
    points.unshift({ label: "this prompt", detail: "being typed", kind: "prompt",
      x: prompt[0], y: prompt[1] });
  }
  const open = box.querySelector("details")?.open;
  put(box, scatter("Skills on a plane", points, box.clientWidth), el("p", { class: "soft small" },
    `The plane keeps ${percent(map.shares[0] + map.shares[1])} of what tells the skills apart.`));
  if (open) box.querySelector("details").open = true;
}
