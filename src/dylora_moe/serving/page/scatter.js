// A scatter with labels that do not lie on each other, and its points as a table.

import { el, short, svg, table } from "./dom.js";

const HEIGHT = 300;
const EDGE = 18;
const LINE = 15;

/**
 * @param title what the points are
 * @param points [{label, detail, x, y, kind}], of kind "skill", "foreign" or "prompt"; the first
 *   ones get their labels first
 * @param width in pixels
 */
export function scatter(title, points, width) {
  const place = fitted(points, width);
  const taken = points.map((point) => around(...place(point)));
  const drawing = svg("svg", {
    class: "chart", role: "img", width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`,
    "aria-label": `${title}: ${points.map((point) => point.label).join(", ")}.`,
  });
  for (const point of points) drawing.append(mark(point, ...place(point)));
  for (const point of points) {
    const label = labelled(point, ...place(point), width, taken);
    if (label) drawing.append(label);
  }
  const rows = points.map((point) => [point.label, point.detail, short(point.x), short(point.y)]);
  return el("figure", { class: "plot" }, drawing, el("details", {}, el("summary", {}, "Numbers"),
    table(title, ["point", "of", "x", "y"], rows, "numbers")));
}

/** One scale for both axes, so that distances are true. */
function fitted(points, width) {
  const [xs, ys] = [points.map((point) => point.x), points.map((point) => point.y)];
  const middle = (values) => (Math.min(...values) + Math.max(...values)) / 2;
  const extent = (values) => Math.max(...values) - Math.min(...values);
  const across = Math.min(
    (width - 2 * EDGE) / (extent(xs) || 1e-9), (HEIGHT - 2 * EDGE) / (extent(ys) || 1e-9), 1e6);
  return (point) => [
    width / 2 + (point.x - middle(xs)) * across, HEIGHT / 2 - (point.y - middle(ys)) * across];
}

function mark(point, x, y) {
  const said = svg("title", {}, `${point.label}: ${point.detail}`);
  if (point.kind === "foreign") {
    return svg("path", { class: "foreign", d: `M${x - 5} ${y}h10M${x} ${y - 5}v10` }, said);
  }
  const size = point.kind === "prompt" ? 7 : 5;
  return svg("circle", { class: point.kind, cx: x, cy: y, r: size }, said);
}

const around = (x, y) => ({ left: x - 8, right: x + 8, top: y - 7, bottom: y + 7 });

/** The label where there is room: right, left, above, below; none where there is none. */
function labelled(point, x, y, width, taken) {
  const room = 6.6 * point.label.length;
  const places = [[x + 10, y + 4, "start"], [x - 10, y + 4, "end"],
    [x, y - 10, "middle"], [x, y + 19, "middle"]];
  for (const [left, base, anchor] of places) {
    const start = left - { start: 0, end: room, middle: room / 2 }[anchor];
    const box = { left: start, right: start + room, top: base - LINE + 4, bottom: base + 3 };
    const outside = box.left < 0 || box.right > width || box.top < 0 || box.bottom > HEIGHT;
    const crossing = taken.some((other) => box.left < other.right && other.left < box.right
      && box.top < other.bottom && other.top < box.bottom);
    if (outside || crossing) continue;
    taken.push(box);
    return svg("text", { class: `label ${point.kind}`, x: left, y: base, "text-anchor": anchor },
      point.label);
  }
  return null;
}
