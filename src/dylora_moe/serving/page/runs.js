// Runs of learning with their curves.

import { ask } from "./api.js";
import { byId, el, put } from "./dom.js";
import { lineChart } from "./line.js";

let runs = [];
let run = null;
let drawn = 0;

/** Wires the controls; once. */
export function startRuns(onError) {
  byId("run").addEventListener("change", () => loadRun().catch(onError));
  byId("curve").addEventListener("change", draw);
  new ResizeObserver(() => {
    if (byId("runs-body").clientWidth !== drawn) draw();
  }).observe(byId("runs-body"));
}

/** Looks for new runs, and again at the chosen one while it is not finished. */
export async function lookAtRuns() {
  const found = await ask("/v1/pool/runs");
  const changed = JSON.stringify(found) !== JSON.stringify(runs);
  runs = found;
  if (!runs.length) {
    put(byId("runs-body"), el("p", { class: "soft" }, "There is no run yet."));
    return;
  }
  if (changed) {
    const chosen = byId("run").value;
    put(byId("run"), runs.map((one) => el("option", { value: one.id },
      one.finished ? one.name : `${one.name} (not finished)`)));
    if (runs.some((one) => one.id === chosen)) byId("run").value = chosen;
  }
  if (changed || !run?.finished) await loadRun();
}

async function loadRun() {
  run = await ask(`/v1/pool/runs/${encodeURIComponent(byId("run").value)}`);
  const chosen = byId("curve").value;
  const names = [...groups(run).keys()];
  put(byId("curve"), names.map((name) => el("option", {}, name)));
  if (names.includes(chosen)) byId("curve").value = chosen;
  draw();
}

/** Curves that belong into one drawing: the losses; what has a name before a slash; each other one
 * alone. The losses come first. */
function groups(found) {
  const made = new Map([["loss", []]]);
  for (const [key, points] of Object.entries(found.curves)) {
    const loss = key === "loss" || (key.startsWith("eval_") && key.endsWith("loss"));
    const [group, inner] = loss ? ["loss", key] : key.split(/\/(.*)/s);
    const title = group.replaceAll("_", " ");
    const name = (inner ?? group).replaceAll("_", " ");
    if (!made.has(title)) made.set(title, []);
    made.get(title).push({ name, points });
  }
  if (!made.get("loss").length) made.delete("loss");
  return made;
}

function draw() {
  const box = byId("runs-body");
  if (run === null || !box.clientWidth) return;
  drawn = box.clientWidth;
  const title = byId("curve").value;
  const curves = groups(run).get(title);
  const open = box.querySelector("details")?.open;
  const warnings = run.warnings.map((text) => el("li", {}, text));
  put(box, curves ? lineChart(title, curves, run.phases, drawn)
    : el("p", { class: "soft" }, "This run has logged nothing yet."),
  warnings.length ? el("ul", { class: "warnings" }, warnings) : []);
  if (open && box.querySelector("details")) box.querySelector("details").open = true;
}
