// Speaks to the server: JSON, and answers as a stream of events. Asks for a key where one is needed.

import { byId } from "./dom.js";

const KEY = "dylora-key";
let asked = null;

export class ServerError extends Error {
  constructor(status, message, code) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** GET, or POST of a body, as JSON. */
export async function ask(path, body, options = {}) {
  const response = await request(path, body, options);
  return response.json();
}

/** DELETE. */
export async function remove(path) {
  const response = await request(path, undefined, { method: "DELETE" });
  return response.json();
}

/** POST of a body whose answer comes in pieces: yields every event's JSON until the end. */
export async function* stream(path, body, options = {}) {
  const response = await request(path, body, options);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.split("\n").filter((line) => line.startsWith("data:"))
        .map((line) => line.slice(5).trim()).join("\n");
      if (data === "[DONE]") return;
      if (!data) continue;
      const found = JSON.parse(data);
      if (found.error) throw new ServerError(response.status, found.error.message, found.error.code);
      yield found;
    }
  }
}

async function request(path, body, { signal, method } = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = { ...(key && { authorization: `Bearer ${key}` }),
      ...(body !== undefined && { "content-type": "application/json" }) };
    const response = await fetch(path, {
      method: method ?? (body === undefined ? "GET" : "POST"),
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
    });
    if (response.ok) return response;
    if (response.status === 401) {
      // Somebody else may have given another one meanwhile.
      if (sessionStorage.getItem(KEY) === key) await askForKey(key !== null);
      continue;
    }
    const told = await response.json().catch(() => ({}));
    const message = told.error?.message ?? `the server answered ${response.status}`;
    throw new ServerError(response.status, message, told.error?.code);
  }
}

/** Asks for a key that may do more than the one there is. */
export function otherKey() {
  return askForKey(false, false);
}

/** Once for all requests that wait for it. */
function askForKey(again, needed = true) {
  asked ??= new Promise((resolve) => {
    const dialog = byId("key-dialog");
    byId("key-note").textContent = !needed ? "This needs an admin key."
      : again ? "The server does not know this key; give another one."
        : "It stays in this tab and is forgotten when the tab is closed.";
    byId("key").value = "";
    const end = () => {
      byId("key-form").removeEventListener("submit", keep);
      asked = null;
      resolve();
    };
    const keep = (event) => {
      event.preventDefault();
      const given = byId("key").value.trim();
      // A header takes nothing else; sent all the same, it looks as if the server were gone.
      if (!/^[\x21-\x7e]+$/.test(given)) {
        byId("key-note").textContent = "A key has letters, digits and signs without accents; give it again.";
        return;
      }
      sessionStorage.setItem(KEY, given);
      dialog.close();
      end();
    };
    byId("key-form").addEventListener("submit", keep);
    // Without the key that everything needs there is nothing to go back to.
    dialog.oncancel = (event) => (needed ? event.preventDefault() : end());
    dialog.showModal();
  });
  return asked;
}
