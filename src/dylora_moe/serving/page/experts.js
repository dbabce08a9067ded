// The tiles, and the table of experts with their maturity, versions, traffic and age.

import { bar, byId, el, many, percent, put, short, since, table } from "./dom.js";

const HEADS = ["expert", "version", "maturity", "learned", "traffic", "age"];

/** @param pool `/v1/pool` @param now `/v1/pool/now` @param scores `/v1/pool/scores` or null */
export function showTiles(pool, now, scores) {
  const mature = pool.experts.filter((expert) => expert.state === "mature").length;
  const tiles = [
    ["experts", pool.experts.length, pool.experts.length ? `${mature} mature` : "none yet"],
    ["mean accuracy", scores?.average_accuracy == null ? "–" : percent(scores.average_accuracy),
      "of all skills, now"],
    ["answers", total(now), "since the start"],
    ["under way", now.running, `${now.waiting} waiting`],
    ["strange prompts", now.screened ? percent(now.novel / now.screened) : "–",
      now.screened ? `${now.novel} of ${now.screened}` : "nothing screened"],
    ["revision", now.revision, now.current === now.revision ? "as stored" : `taking up ${now.current}`],
  ];
  put(byId("tiles"), tiles.map(([name, value, more]) =>
    el("div", {}, el("dt", {}, name), el("dd", {}, el("b", {}, String(value)), el("span", {}, more)))));
}

/** The same arguments. */
export function showExperts(pool, now) {
  const box = byId("experts-body");
  const open = new Set([...box.querySelectorAll("details[open]")].map((each) => each.dataset.expert));
  const focused = document.activeElement?.closest?.("#experts-body details")?.dataset.expert;
  const counted = new Map(now.traffic.map((one) => [one.expert, one]));
  const answers = total(now);
  const rows = pool.experts.map((expert) => [
    name(expert), versions(expert, open), maturity(expert),
    `${short(expert.count)} rows`, traffic(counted.get(expert.alias), answers), since(expert.born)]);
  rows.push([el("span", {}, el("b", {}, "base"), el("small", {}, "no expert")), "–", "–", "–",
    traffic(counted.get("base"), answers), "–"]);
  put(box, table("Experts of the pool", HEADS, rows, "stacked"));
  box.querySelector(`details[data-expert="${CSS.escape(focused ?? "")}"] summary`)?.focus();
}

function name(expert) {
  const skills = expert.skills.filter((skill) => skill !== expert.alias);
  const more = [skills.join(", "), expert.rank && `rank ${expert.rank}`].filter(Boolean).join(" · ");
  return el("span", {}, el("b", {}, expert.alias), el("small", {}, more));
}

function versions(expert, open) {
  if (expert.versions.length < 2) return `v${expert.version}`;
  const details = el("details", { open: open.has(expert.id) },
    el("summary", {}, `v${expert.version} of ${expert.versions.length}`),
    el("ul", {}, expert.versions.map((one) => el("li", {}, `v${one.version}, `,
      `maturity ${one.maturity.toFixed(2)}, `, since(one.created_at)))));
  details.dataset.expert = expert.id;
  return details;
}

function maturity(expert) {
  return el("span", { class: "measure" }, bar(expert.maturity),
    el("span", {}, `${expert.maturity.toFixed(2)} ${expert.state}`));
}

function traffic(found, answers) {
  const requests = found?.requests ?? 0;
  return el("span", { class: "measure" }, bar(answers ? requests / answers : 0),
    el("span", {}, answers ? `${percent(requests / answers)} (${requests})` : many(0, "answer", "answers")));
}

const total = (now) => now.traffic.reduce((sum, one) => sum + one.requests, 0);
