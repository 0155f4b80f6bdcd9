// Figures from the text format of Prometheus.

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;
const ESCAPES = { n: "\n" };

// By name of a sample: its labels and value.
export function parse(text) {
  const samples = new Map();
  for (const line of text.split("\n")) {
    const match = LINE.exec(line);
    if (!match) continue;
    const labels = {};
    for (const [, name, value] of (match[2] || "").matchAll(LABEL)) {
      labels[name] = value.replace(/\\(.)/g, (_, letter) => ESCAPES[letter] || letter);
    }
    if (!samples.has(match[1])) samples.set(match[1], []);
    samples.get(match[1]).push({ labels, value: Number(match[3].replace("+Inf", "Infinity")) });
  }
  return samples;
}

// The sum of the samples of a name whose labels a test accepts.
export function sum(samples, name, accepts = () => true) {
  let total = 0;
  for (const { labels, value } of samples.get(name) || []) if (accepts(labels)) total += value;
  return total;
}

// A histogram over the samples that a test accepts: upper ends of the buckets in seconds, and how many durations are up to each.
export function histogram(samples, name, accepts = () => true) {
  const upTo = new Map();
  for (const { labels, value } of samples.get(`${name}_bucket`) || []) {
    if (!accepts(labels)) continue;
    const end = Number(labels.le.replace("+Inf", "Infinity"));
    upTo.set(end, (upTo.get(end) || 0) + value);
  }
  return [...upTo].sort(([a], [b]) => a - b);
}

// What a histogram has counted since an earlier one.
export function since(later, earlier) {
  const before = new Map(earlier);
  return later.map(([end, count]) => [end, count - (before.get(end) || 0)]);
}

// A quantile, interpolated in its bucket as Prometheus does; null without durations, Infinity beyond the last bucket.
export function quantile(buckets, q) {
  const count = buckets.length ? buckets[buckets.length - 1][1] : 0;
  if (!(count > 0)) return null;
  let [start, below] = [0, 0];
  for (const [end, upTo] of buckets) {
    if (upTo >= q * count) {
      if (end === Infinity) return Infinity;
      return start + ((end - start) * (q * count - below)) / (upTo - below || 1);
    }
    [start, below] = [end, upTo];
  }
  return Infinity;
}
