// A line chart: curves over updates, phases as bands, and its numbers as a table.

import { el, many, short, svg, table } from "./dom.js";

const MARGIN = { left: 44, right: 12, top: 20, bottom: 26 };
const HEIGHT = 240;

/**
 * @param title what the curves are of
 * @param curves [{name, points: [[x, y], ...]}]
 * @param phases [{name, start, end}]
 * @param width in pixels
 */
export function lineChart(title, curves, phases, width) {
  const all = curves.flatMap((curve) => curve.points);
  const x = scale(all.map((point) => point[0]), MARGIN.left, width - MARGIN.right);
  const y = scale(all.map((point) => point[1]), HEIGHT - MARGIN.bottom, MARGIN.top, true);
  const said = curves.map((curve) => `${curve.name}: ${describe(curve.points)}`).join("; ");
  const drawing = svg("svg", {
    class: "chart", role: "img", width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`,
    "aria-label": `${title} over updates. ${said}.`,
  });
  drawing.append(
    ...phases.map((phase, index) => band(phase, index, x)),
    ...y.ticks.map((value) => gridLine(value, y(value), width)),
    ...x.ticks.map((value) => svg("text", {
      class: "tick", x: x(value), y: HEIGHT - 8, "text-anchor": "middle" }, short(value))),
    ...curves.map((curve, index) => path(curve, index, x, y)),
  );
  return el("figure", { class: "plot" }, drawing, legend(curves), numbers(title, curves));
}

function band(phase, index, x) {
  const [start, end] = [x(phase.start), x(phase.end)];
  const box = svg("rect", { class: index % 2 ? "band odd" : "band", x: start, y: MARGIN.top,
    width: Math.max(0, end - start), height: HEIGHT - MARGIN.top - MARGIN.bottom });
  const fits = end - start > 7 * phase.name.length;
  const name = fits ? svg("text", { class: "tick", x: start + 4, y: MARGIN.top - 6 }, phase.name) : null;
  return svg("g", {}, box, name);
}

function gridLine(value, place, width) {
  return svg("g", {},
    svg("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: place, y2: place }),
    svg("text", { class: "tick", x: MARGIN.left - 6, y: place + 4, "text-anchor": "end" }, short(value)));
}

function path(curve, index, x, y) {
  const places = curve.points.map(([a, b]) => `${x(a).toFixed(1)},${y(b).toFixed(1)}`);
  if (places.length > 1) {
    return svg("polyline", { class: `line c${index % 6}`, points: places.join(" ") });
  }
  const [a, b] = places[0].split(",");
  return svg("circle", { class: `dot c${index % 6}`, cx: a, cy: b, r: 3.5 });
}

function legend(curves) {
  return el("figcaption", { class: "legend" }, curves.map((curve, index) => el("span", {},
    svg("svg", { class: "chart key", width: 22, height: 8, "aria-hidden": "true" },
      svg("line", { class: `line c${index % 6}`, x1: 0, x2: 22, y1: 4, y2: 4 })), curve.name)));
}

function numbers(title, curves) {
  const rows = curves.map(({ name, points }) => {
    const values = points.map((point) => point[1]);
    return [name, short(values[0]), short(values.at(-1)), short(Math.min(...values)),
      short(Math.max(...values))];
  });
  return el("details", {}, el("summary", {}, "Numbers"),
    table(title, ["curve", "first", "last", "lowest", "highest"], rows, "numbers"));
}

function describe(points) {
  const [first, last] = [points[0], points.at(-1)];
  if (points.length === 1) return `${short(first[1])} at update ${short(first[0])}`;
  return `from ${short(first[1])} to ${short(last[1])} in ${many(points.length, "point", "points")}`;
}

/** Values to pixels, with round ticks; a scale of heights has some room around. */
function scale(values, start, end, padded = false) {
  let [low, high] = [Math.min(...values), Math.max(...values)];
  if (low === high) [low, high] = [low - (Math.abs(low) || 1) / 2, high + (Math.abs(high) || 1) / 2];
  const room = padded ? (high - low) * 0.05 : 0;
  [low, high] = [low >= 0 && low - room < 0 ? 0 : low - room, high + room];
  const count = Math.abs(end - start) / (padded ? 45 : 80);
  const raw = (high - low) / Math.max(count, 1);
  const size = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((factor) => factor * size >= raw) * size;
  const place = (value) => start + ((value - low) / (high - low)) * (end - start);
  place.ticks = [];
  for (let n = Math.ceil(low / step); n * step <= high; n += 1) place.ticks.push(n * step);
  return place;
}
