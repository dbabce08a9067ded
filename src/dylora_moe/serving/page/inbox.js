// The inbox: clusters of prompts that no skill claimed, answered and learned here, or dropped.

import { ask, otherKey, remove } from "./api.js";
import { byId, el, many, percent, put } from "./dom.js";

const ENDED = ["done", "failed", "cancelled"];
let shown = "";
let jobs = [];

/** @param enabled whether the server keeps prompts */
export async function lookAtInbox(enabled) {
  if (!enabled) {
    say("off", el("p", { class: "soft" }, "This server keeps no prompts. To see here what no skill ",
      "claims, start it with ", el("code", {}, "inbox.enabled"), " set to true."));
    return;
  }
  const running = jobs.filter((job) => !ENDED.includes(job.state));
  const seen = await Promise.all(running.map((job) => ask(`/v1/jobs/${encodeURIComponent(job.id)}`)));
  jobs = jobs.map((job) => seen.find((one) => one.id === job.id) ?? job);
  let data;
  try {
    ({ data } = await ask("/v1/inbox"));
  } catch (error) {
    if (error.status !== 403) throw error;
    const give = el("button", { type: "button", class: "quiet", onclick: otherKey }, "Give an admin key");
    say(error.code, el("p", { class: "soft" }, `Not shown: ${error.message}.`),
      error.code === "admin_key_needed" ? el("p", {}, give) : []);
    return;
  }
  // What is being written stays: an open form is not drawn anew.
  if (byId("inbox-body").querySelector("form")) {
    byId("inbox-jobs")?.replaceChildren(...jobs.map(jobLine));
    return;
  }
  say(JSON.stringify([data, jobs]), el("div", { id: "inbox-jobs", role: "status" }, jobs.map(jobLine)),
    data.length ? data.map(clusterCard) : el("p", { class: "soft" }, "No prompt waits."));
}

function say(state, ...children) {
  if (state === shown) return;
  shown = state;
  put(byId("inbox-body"), ...children);
}

function jobLine(job) {
  const how = job.state === "running" ? `${job.stage || "starting"}, ${percent(job.progress)}` : job.state;
  return el("p", { class: "small" }, `Learning ${job.subject}: ${how}`, job.message ? `. ${job.message}` : "");
}

function clusterCard(cluster) {
  const box = el("div", {});
  // Beside the form: what is being written there stays.
  const trouble = el("p", { role: "alert", class: "small" });
  const saying = (work) => work.catch((error) => { trouble.textContent = error.message; });
  const answer = el("button", { type: "button", class: "quiet", onclick: () => saying(openForm(cluster, box)) },
    "Answer and learn");
  const drop = el("button", { type: "button", class: "quiet", onclick: () => saying(dropCluster(cluster, drop)) },
    "Drop");
  return el("article", { class: "cluster", "aria-label": `Cluster ${cluster.id}` },
    el("h3", {}, `${many(cluster.size, "prompt", "prompts")}, asked ${many(cluster.asked, "time", "times")}`),
    el("p", { class: "soft small" }, judged(cluster)),
    el("ul", { class: "prompts" }, cluster.examples.map((one) => el("li", {}, textOf(one)))),
    el("p", { class: "controls" }, el("span", { class: "soft small" }, cluster.id),
      el("span", { class: "push" }, drop, answer)), trouble, box);
}

function judged({ apart, nearest, separability, lacking }) {
  const [first] = nearest;
  const sides = { true: "another skill than", false: "not told apart from", null: "not surely told from" };
  const range = separability
    && ` (${separability.value.toFixed(2)}, ${separability.low.toFixed(2)} to ${separability.high.toFixed(2)})`;
  const told = first ? `${sides[String(apart)]} ${first.expert}${range ?? ""}` : "no skill to compare with";
  const more = nearest.slice(1, 3).map((one) => `${one.expert} ${one.separability.toFixed(2)}`).join(", ");
  return `${told[0].toUpperCase()}${told.slice(1)}${more && `; then ${more}`}. `
    + (lacking ? `${many(lacking, "prompt is", "prompts are")} lacking for a verdict.` : "Enough for a verdict.");
}

const textOf = (prompt) => prompt.messages.map((turn) => turn.content).join("\n");

async function openForm(cluster, box) {
  const found = await ask(`/v1/inbox/${encodeURIComponent(cluster.id)}`);
  const note = el("p", { role: "status", class: "small" });
  const fields = found.prompts.map((prompt, index) => {
    const id = `answer-${cluster.id}-${index}`;
    return { prompt, input: el("textarea", { id, rows: 1 }), id };
  });
  const name = el("input", { id: `name-${cluster.id}`, pattern: "[A-Za-z0-9_][A-Za-z0-9_.\\-]{0,99}" });
  const close = () => put(box);
  const form = el("form", { onsubmit: (event) => {
    event.preventDefault();
    confirm(cluster, fields, name.value, note).then((job) => {
      jobs.push(job);
      close();
      shown = "";
      return lookAtInbox(true);
    }).catch((error) => { note.textContent = error.message; });
  } }, fields.map(({ prompt, input, id }) => [el("label", { for: id }, textOf(prompt)), input]),
  el("p", { class: "controls" }, el("label", { for: name.id }, "Name of a new expert"), name,
    el("span", { class: "push" }, el("button", { type: "button", class: "quiet", onclick: close }, "Cancel"),
      el("button", { type: "submit" }, "Learn"))), note);
  put(box, form);
  fields[0]?.input.focus();
}

/** Prompts that were given no answer stay in the inbox. */
async function confirm(cluster, fields, name, note) {
  const answers = fields.filter(({ input }) => input.value.trim()).map(({ prompt, input }) => ({
    messages: [...prompt.messages, { role: "assistant", content: input.value }] }));
  if (!answers.length) throw new Error("Give at least one answer.");
  note.textContent = "Sending.";
  const path = `/v1/inbox/${encodeURIComponent(cluster.id)}/confirm`;
  return ask(path, { answers, ...(name && { name }) });
}

async function dropCluster(cluster, button) {
  if (button.dataset.sure === undefined) {
    button.dataset.sure = "";
    button.textContent = `Drop ${many(cluster.size, "prompt", "prompts")} for good`;
    return;
  }
  await remove(`/v1/inbox/${encodeURIComponent(cluster.id)}`);
  await lookAtInbox(true);
}
