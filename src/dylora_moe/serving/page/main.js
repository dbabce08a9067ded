// Looks at the server every few seconds, and at what has changed with a new revision.

import { ask } from "./api.js";
import { offerModels, startAsking } from "./ask.js";
import { byId, el, put, since } from "./dom.js";
import { showExperts, showTiles } from "./experts.js";
import { lookAtInbox } from "./inbox.js";
import { lookAtRuns, startRuns } from "./runs.js";
import { showMap, showScores, startSkills } from "./skills.js";

const EVERY = 4000;
let pool = null;
let scores = null;
// Revisions that were shown whole: what fails is asked for again at the next look.
let shown = null;
let mapped = null;

startAsking();
startSkills();
startRuns(complain);
beat();

async function beat() {
  try {
    if (!document.hidden) await look();
    byId("alert").hidden = true;
  } catch (error) {
    complain(error);
  }
  setTimeout(beat, EVERY);
}

async function look() {
  const now = await ask("/v1/pool/now");
  if (shown !== now.current) {
    [pool, scores] = await Promise.all([ask("/v1/pool"), ask("/v1/pool/scores")]);
    offerModels(pool);
    showScores(scores);
    byId("pool-name").textContent = pool.name;
    document.title = `${pool.name} · DyLoRA-MoE`;
    byId("pool-facts").textContent = `${pool.base}, tap at block ${pool.tap}, ${pool.format} prompts`;
    shown = now.current;
  }
  showStatus(now);
  showTiles(pool, now, scores);
  showExperts(pool, now);
  await Promise.all([lookAtMap(now), lookAtRuns(), lookAtInbox(now.inbox), lookAtEvents()]);
}

/** The map is the engine's, which takes a revision up a moment later than the pool has it. */
async function lookAtMap(now) {
  if (!now.ready || mapped === now.revision) return;
  showMap(await ask("/v1/pool/map"));
  mapped = now.revision;
}

function showStatus(now) {
  const told = now.ready ? now.running ? "answering" : "ready" : "takes no requests";
  const status = byId("status");
  if (status.textContent === told) return;
  status.textContent = told;
  status.className = now.ready ? "status good" : "status bad";
}

async function lookAtEvents() {
  const found = await ask("/v1/pool/events?limit=15");
  put(byId("events-body"), found.length ? el("ol", { class: "events" }, found.map((event) => el("li", {},
    el("b", {}, event.kind), el("span", {}, event.message), since(event.created_at))))
    : el("p", { class: "soft" }, "Nothing has happened yet."));
}

function complain(error) {
  const alert = byId("alert");
  const told = error instanceof TypeError ? "The server cannot be reached; trying again." : error.message;
  if (alert.textContent !== told) alert.textContent = told;
  alert.hidden = false;
  if (error instanceof TypeError) {
    byId("status").textContent = "not reachable";
    byId("status").className = "status bad";
  }
}
