// Drawings in SVG, in the colours of the page. Each is drawn again where its place gets another width.

const NAMESPACE = "http://www.w3.org/2000/svg";
const LEFT = 52;
const RIGHT = 12;
const TOP = 10;
const BOTTOM = 24;
const SHAPES = 6; // colours and dashes of lines

function shape(name, attributes, parent, text) {
  const made = document.createElementNS(NAMESPACE, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}

const drawings = new Map(); // what is drawn in a place, and how wide it was
const widths = new ResizeObserver((places) => {
  for (const { target } of places) {
    const drawing = drawings.get(target);
    if (drawing && target.clientWidth && Math.abs(target.clientWidth - drawing.width) > 2) draw(target, drawing.make);
  }
});

function draw(place, make) {
  const width = Math.max(240, place.clientWidth);
  drawings.set(place, { make, width });
  place.replaceChildren(make(width));
  widths.observe(place);
}

function ticks(most) {
  const rough = most / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  return Array.from({ length: Math.floor(most / step + 1e-9) + 1 }, (_, number) => number * step);
}

// The largest value of the axis: intervals that are wide for lack of answers leave the picture at its top.
function top(series) {
  const points = series.flatMap((line) => line.points).filter((point) => point && Number.isFinite(point.mean));
  const means = Math.max(0, ...points.map((point) => point.mean));
  const highs = Math.max(0, ...points.map((point) => (Number.isFinite(point.high) ? point.high : point.mean)));
  return (means > 0 ? Math.min(highs, 2.5 * means) : highs) * 1.05 || 1;
}

// Consecutive points of a line, as [place, point].
function runs(points) {
  const found = [];
  let run = [];
  points.forEach((point, place) => {
    if (point && Number.isFinite(point.mean)) run.push([place, point]);
    else if (run.length) [run] = [[], found.push(run)];
  });
  if (run.length) found.push(run);
  return found;
}

let clips = 0;

// Lines over the same labels. series: name and points, each a mean, or with low and high, or null; write: a value as text.
export function lines(place, { title, labels, series, write, height = 220 }) {
  draw(place, (width) => {
    const svg = shape("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title, class: "chart" });
    const most = top(series);
    const x = (at) => LEFT + ((width - LEFT - RIGHT) * (labels.length > 1 ? at / (labels.length - 1) : 0.5));
    const y = (value) => height - BOTTOM - ((height - BOTTOM - TOP) * Math.max(0, value)) / most;
    for (const value of ticks(most)) {
      shape("line", { x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value), class: "grid" }, svg);
      shape("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, svg, write(value, most));
    }
    const every = Math.ceil(labels.length / Math.max(1, Math.floor((width - LEFT) / 80)));
    labels.forEach((label, at) => {
      if ((labels.length - 1 - at) % every) return;
      const anchor = at === labels.length - 1 && at > 0 ? "end" : at ? "middle" : labels.length > 1 ? "start" : "middle";
      shape("text", { x: x(at), y: height - 6, "text-anchor": anchor }, svg, label);
    });
    const clip = `clip-${++clips}`;
    const box = shape("clipPath", { id: clip }, shape("defs", {}, svg));
    shape("rect", { x: 0, y: TOP - 5, width, height: height - TOP }, box);
    const inside = shape("g", { "clip-path": `url(#${clip})` }, svg);
    series.forEach((line, number) => {
      const group = shape("g", { class: `line line-${number % SHAPES}` }, inside);
      for (const run of runs(line.points)) {
        const banded = run.filter(([, point]) => Number.isFinite(point.low) && Number.isFinite(point.high));
        if (banded.length > 1 && banded.length === run.length) {
          const corners = [...run.map(([at, p]) => [x(at), y(p.high)]), ...[...run].reverse().map(([at, p]) => [x(at), y(p.low)])];
          shape("polygon", { points: corners.join(" "), class: "band" }, group);
        } else {
          for (const [at, p] of banded) shape("line", { x1: x(at), x2: x(at), y1: y(p.low), y2: y(p.high), class: "bar" }, group);
        }
        shape("polyline", { points: run.map(([at, point]) => [x(at), y(point.mean)]).join(" "), class: "mean" }, group);
        for (const [at, point] of labels.length > 40 ? [] : run) {
          const dot = shape("circle", { cx: x(at), cy: y(point.mean), r: 3 }, group);
          const interval = Number.isFinite(point.low) ? ` (${write(point.low, most)} to ${write(point.high, most)})` : "";
          shape("title", {}, dot, `${line.name}, ${labels[at]}: ${write(point.mean, most)}${interval}`);
        }
      }
    });
    return svg;
  });
}

// The names of lines beside their colours and dashes.
export function legend(names) {
  return names.map((name, number) => {
    const row = document.createElement("li");
    const svg = shape("svg", { width: 26, height: 10, "aria-hidden": "true", class: "chart" }, row);
    const group = shape("g", { class: `line line-${number % SHAPES}` }, svg);
    shape("polyline", { points: "1,5 25,5", class: "mean" }, group);
    row.append(` ${name}`);
    return row;
  });
}

// A difference and its interval beside zero.
export function interval(place, { title, mean, low, high, write }) {
  draw(place, (width) => {
    const height = 64;
    const svg = shape("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title, class: "chart" });
    const reach = Math.max(Math.abs(low), Math.abs(high)) * 1.15 || 1;
    const x = (value) => width / 2 + (value / reach) * (width / 2 - 30);
    shape("line", { x1: 0, x2: width, y1: 22, y2: 22, class: "grid" }, svg);
    shape("line", { x1: x(0), x2: x(0), y1: 6, y2: 40, class: "zero" }, svg);
    const group = shape("g", { class: `line ${low > 0 || high < 0 ? "line-0" : "line-5"}` }, svg);
    shape("line", { x1: x(low), x2: x(high), y1: 22, y2: 22, class: "bar" }, group);
    shape("circle", { cx: x(mean), cy: 22, r: 5 }, group);
    shape("text", { x: x(0) + 5, y: 12 }, svg, "0");
    if (x(high) - x(low) > 150) {
      shape("text", { x: x(low), y: 56, "text-anchor": "middle" }, svg, write(low));
      shape("text", { x: x(high), y: 56, "text-anchor": "middle" }, svg, write(high));
    } else {
      const middle = Math.min(width - 90, Math.max(90, (x(low) + x(high)) / 2));
      shape("text", { x: middle, y: 56, "text-anchor": "middle" }, svg, `${write(low)} to ${write(high)}`);
    }
    return svg;
  });
}

// A bar to the right for more than nothing, to the left for less; most: what fills half of it.
export function signedBar(value, most) {
  const svg = shape("svg", { viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true", class: "signed" });
  const size = most > 0 ? (50 * Math.abs(value)) / most : 0;
  shape("line", { x1: 50, x2: 50, y1: 0, y2: 8, class: "zero" }, svg);
  shape("rect", { x: value < 0 ? 50 - size : 50, y: 1, width: size, height: 6, class: value < 0 ? "less" : "more" }, svg);
  return svg;
}

// A share of a whole, with a mark where it becomes too much.
export function meter(share, limit) {
  const svg = shape("svg", { viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true", class: "meter" });
  shape("rect", { x: 0, y: 1, width: 100, height: 6, class: "whole" }, svg);
  shape("rect", { x: 0, y: 1, width: 100 * Math.min(1, share), height: 6, class: limit && share > limit ? "less" : "more" }, svg);
  if (limit) shape("line", { x1: 100 * limit, x2: 100 * limit, y1: 0, y2: 8, class: "zero" }, svg);
  return svg;
}
