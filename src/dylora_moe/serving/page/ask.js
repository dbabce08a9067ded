// The chat: what is sent, the answer as it comes, and which expert gave it.

import { stream } from "./api.js";
import { byId, el, many, percent, short, table } from "./dom.js";
import { routeSoon } from "./routing.js";

const turns = [];
let pool = null;
let running = null;

/** Wires the controls; once. */
export function startAsking() {
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    if (running) running.abort();
    else send();
  });
  byId("prompt").addEventListener("input", look);
  byId("together").addEventListener("change", look);
  byId("ask").addEventListener("keydown", (event) => {
    if (event.key === "Escape") running?.abort();
  });
  byId("prompt").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    if (!running) byId("composer").requestSubmit();
  });
  byId("forget").addEventListener("click", () => {
    running?.abort();
    turns.length = 0;
    byId("log").replaceChildren();
    byId("prompt").focus();
    look();
  });
}

/** Who can be asked, after the pool has changed. */
export function offerModels(found) {
  const first = pool === null;
  pool = found;
  const select = byId("model");
  const chosen = select.value;
  const names = [[pool.name, "the router's choice"],
    ...pool.experts.map((expert) => [expert.alias, expert.alias]), ["base", "base"]];
  select.replaceChildren(...names.map(([value, text]) => el("option", { value }, text)));
  select.value = names.some(([value]) => value === chosen) ? chosen : pool.name;
  // A pool of single prompts has learned no conversations.
  if (first) byId("together").checked = pool.format === "chat";
}

function asked() {
  const content = byId("prompt").value;
  return [...(byId("together").checked ? turns : []), { role: "user", content }];
}

const look = () => routeSoon(byId("prompt").value.trim() ? asked() : null);

async function send() {
  const content = byId("prompt").value;
  if (!content.trim() || pool === null) return;
  const body = { model: byId("model").value, messages: asked(), stream: true,
    max_tokens: byId("tokens").valueAsNumber || 128, stream_options: { include_usage: true } };
  const shown = opened(content);
  byId("prompt").value = "";
  begin();
  try {
    const answer = await receive(body, shown);
    turns.push({ role: "user", content }, { role: "assistant", content: answer });
  } catch (error) {
    const stopped = error.name === "AbortError";
    shown.meta.replaceChildren(el("span", { class: stopped ? "tag" : "tag bad" },
      stopped ? "stopped" : error.message));
  } finally {
    end();
  }
}

async function receive(body, shown) {
  let [text, reason] = ["", null];
  const started = performance.now();
  for await (const chunk of stream("/v1/chat/completions", body, { signal: running.signal })) {
    const choice = chunk.choices[0];
    text += choice?.delta?.content ?? "";
    reason = choice?.finish_reason ?? reason;
    shown.text.textContent = text;
    if (chunk.usage) shown.meta.replaceChildren(...told(chunk.usage, reason, started));
    byId("log").scrollTop = byId("log").scrollHeight;
  }
  if (!text) shown.text.textContent = "(an empty answer)";
  return text;
}

function opened(content) {
  const shown = { text: el("p", { class: "text" }), meta: el("div", { class: "meta" },
    el("span", { class: "tag" }, "answering")) };
  byId("log").append(el("li", {}, el("p", { class: "said" }, el("span", { class: "hidden" }, "You: "), content),
    el("div", { class: "answer" }, el("span", { class: "hidden" }, "Answer: "), shown.text, shown.meta)));
  byId("log").scrollTop = byId("log").scrollHeight;
  return shown;
}

/** Who answered, in a line; all of it below, enough to ask again. */
function told(usage, reason, started) {
  const found = usage.dylora?.[0];
  const count = many(usage.completion_tokens, "token", "tokens");
  const seconds = `${short((performance.now() - started) / 1000)} s`;
  const facts = `${count}, ${seconds}${reason === "length" ? ", cut off" : ""}`;
  if (!found) return [el("span", {}, facts)];
  const share = found.weights[`${found.expert}@${found.version}`];
  const who = found.version === null ? "base"
    : `${found.expert} v${found.version}${share === undefined ? "" : ` · ${percent(share)}`}`;
  const marks = [found.canary && "on trial", found.novel && "strange to every skill",
    !found.routed && "pinned"].filter(Boolean);
  const rows = Object.entries(found).filter(([name]) => name !== "weights")
    .map(([name, value]) => [name, value === null ? "–" : String(value)]);
  for (const [name, weight] of Object.entries(found.weights)) rows.push([name, weight.toFixed(4)]);
  return [el("span", { class: "tag expert" }, who),
    ...marks.map((mark) => el("span", { class: "tag" }, mark)), el("span", {}, facts),
    el("details", {}, el("summary", {}, "Provenance"),
      table("Where the answer came from", ["what", "value"], rows, "numbers"))];
}

function begin() {
  running = new AbortController();
  byId("send").textContent = "Stop";
  // Read as a whole when it is complete, not token by token.
  byId("log").setAttribute("aria-busy", "true");
  look();
}

function end() {
  running = null;
  byId("send").textContent = "Send";
  byId("log").removeAttribute("aria-busy");
}
