// Where the prompt that is being typed would go: weights, and its place on the map.

import { ask } from "./api.js";
import { bar, byId, el, percent, put, short, table } from "./dom.js";
import { placePrompt } from "./skills.js";

const PAUSE = 300;
const SHOWN = 8;
let timer = 0;
let running = null;

/** @param turns what would be sent, or null where nothing is typed */
export function routeSoon(turns) {
  clearTimeout(timer);
  running?.abort();
  if (turns === null) {
    byId("route-summary").textContent = "Type a prompt to see each expert's weight.";
    put(byId("route-body"));
    placePrompt(null);
    return;
  }
  timer = setTimeout(() => route(turns), PAUSE);
}

async function route(messages) {
  running = new AbortController();
  try {
    const found = await ask("/v1/route", { messages }, { signal: running.signal });
    byId("route-summary").textContent = summary(found);
    put(byId("route-body"), weights(found));
    placePrompt(found.place);
  } catch (error) {
    if (error.name === "AbortError") return;
    byId("route-summary").textContent = error.message;
    put(byId("route-body"));
    placePrompt(null);
  }
}

function summary(found) {
  const [first] = found.weights;
  const where = found.to_none || !first ? "To no expert: the base answers."
    : `To ${first.expert} v${first.version} with ${percent(first.weight)}.`;
  const near = found.nearest === null ? "" : found.strange
    ? ` Strange to every skill (${short(found.strangeness)}, line ${short(found.threshold)});`
      + ` nearest ${found.nearest}.`
    : ` Nearest skill ${found.nearest} (${short(found.strangeness)}, strange above`
      + ` ${short(found.threshold)}).`;
  const how = found.sparse ? "" : " All take part while one is young.";
  return `${where}${near} Entropy ${short(found.entropy)} nats.${how}`;
}

function weights(found) {
  const rows = found.weights.slice(0, SHOWN).map((one) => [
    el("b", {}, one.expert), measure(one.weight), percent(one.probability)]);
  const given = found.weights.reduce((sum, one) => sum + one.weight, 0);
  rows.push([el("b", {}, "base"), measure(Math.max(0, 1 - given)), percent(found.none)]);
  return table("Weights of the experts", ["expert", "weight", "probability"], rows, "weights");
}

const measure = (share) => el("span", { class: "measure" }, bar(share), el("span", {}, percent(share)));
