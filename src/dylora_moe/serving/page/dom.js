// Elements and numbers as this page writes them. What comes from outside is text, never markup.

export const byId = (id) => document.getElementById(id);

/** An element: properties that start with "on" are listeners, a "class" or "aria-..." attributes. */
export function el(tag, properties = {}, ...children) {
  return filled(document.createElement(tag), properties, children);
}

/** The same of SVG. */
export function svg(tag, properties = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), properties, children);
}

function filled(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

export const put = (parent, ...children) => parent.replaceChildren(...children.flat(Infinity));

/** A bar of a share from 0 to 1; what it says stands beside it as a number. */
export function bar(share) {
  const fill = el("span", { class: "fill" });
  fill.style.inlineSize = `${100 * Math.min(Math.max(share, 0), 1)}%`;
  return el("span", { class: "bar", "aria-hidden": "true" }, fill);
}

/** A table with the roles said: they survive a layout in blocks on a narrow screen. */
export function table(caption, heads, rows, className = "") {
  return el(
    "table",
    { class: className, role: "table" },
    el("caption", { class: "hidden" }, caption),
    el("thead", { role: "rowgroup" }, el("tr", { role: "row" },
      heads.map((head) => el("th", { role: "columnheader", scope: "col" }, head)))),
    el("tbody", { role: "rowgroup" }, rows.map(([first, ...rest]) => el("tr", { role: "row" },
      el("th", { role: "rowheader", scope: "row" }, first),
      rest.map((cell, index) => el("td", { role: "cell", "data-label": heads[index + 1] }, cell))))),
  );
}

/** A region that scrolls by itself, by keyboard too. */
export function scroller(label, child) {
  return el("div", { class: "scroller", role: "region", "aria-label": label, tabindex: "0" }, child);
}

export function percent(share) {
  const value = 100 * share;
  return `${value > 0 && value < 1 ? "<1" : value > 99 && value < 100 ? ">99" : value.toFixed(0)} %`;
}

/** Three significant digits. */
export function short(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size >= 1e6) return `${(value / 1e6).toPrecision(3)}M`;
  if (size >= 1e4) return `${(value / 1e3).toPrecision(3)}k`;
  if (size >= 100) return value.toFixed(0);
  return size > 0 && size < 1e-3 ? value.toExponential(1) : String(Number(value.toPrecision(3)));
}

/** How long ago a moment was. */
export function ago(moment) {
  const seconds = (Date.now() - new Date(moment).getTime()) / 1000;
  if (!Number.isFinite(seconds)) return "–";
  const steps = [["d", 86400], ["h", 3600], ["min", 60]];
  const step = steps.find(([, size]) => seconds >= size);
  return step ? `${Math.floor(seconds / step[1])} ${step[0]}` : "now";
}

/** An element that says a moment exactly and shows how long ago it was. */
export function since(moment) {
  if (!moment) return "–";
  return el("time", { datetime: moment, title: new Date(moment).toLocaleString() }, ago(moment));
}

export const many = (count, one, more) => `${count} ${count === 1 ? one : more}`;
