// A matrix as a table whose cells are shaded by their numbers.

import { el, scroller } from "./dom.js";

/**
 * @param caption what the numbers are
 * @param corner heads the names of the rows
 * @param columns names
 * @param rows [{name, title, values}]; a value of null was not measured
 * @param shade a value to 0 (palest) to 1
 * @param say a value to its text
 */
export function heatMap(caption, corner, columns, rows, shade, say) {
  const head = el("tr", {}, el("th", { scope: "col" }, corner),
    columns.map((name) => el("th", { scope: "col", title: name }, el("span", {}, name))));
  const body = rows.map(({ name, title, values }) => el("tr", {},
    el("th", { scope: "row", title }, el("span", {}, name)),
    values.map((value) => cell(value, shade, say))));
  return scroller(caption, el("table", { class: "heat" }, el("caption", { class: "hidden" }, caption),
    el("thead", {}, head), el("tbody", {}, body)));
}

function cell(value, shade, say) {
  if (value === null) return el("td", { class: "empty" }, el("span", { class: "hidden" }, "not measured"));
  const found = el("td", {}, say(value));
  found.style.setProperty("--shade", `${Math.round(100 * Math.min(Math.max(shade(value), 0), 1))}%`);
  return found;
}
