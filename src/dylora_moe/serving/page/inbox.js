import { byId, el, put } from "./dom.js";
export async function lookAtInbox() { put(byId("inbox-body"), el("p", { class: "soft" }, "…")); }
