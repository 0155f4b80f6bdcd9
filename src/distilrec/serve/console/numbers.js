// Numbers as people read them.

export const whole = (value) => Math.round(value).toLocaleString("en");

export const number = (value) =>
  Math.abs(value) >= 1000 ? whole(value) : value.toLocaleString("en", { maximumSignificantDigits: 3 });

export const percent = (share) => `${number(100 * share)}%`;

export function seconds(value) {
  if (value === null) return "–";
  if (value === Infinity) return "over 5 s";
  if (value < 1e-3) return `${Math.round(value * 1e6)} µs`;
  return value < 1 ? `${number(value * 1e3)} ms` : `${number(value)} s`;
}

export function bytes(value) {
  const units = ["bytes", "KiB", "MiB", "GiB"];
  const power = value < 1 ? 0 : Math.min(3, Math.floor(Math.log2(value) / 10));
  return `${number(value / 1024 ** power)} ${units[power]}`;
}

export const moment = (time) => `${new Date(1000 * time).toISOString().slice(0, 16).replace("T", " ")} UTC`;

export const between = (estimate, write) =>
  estimate ? `${write(estimate.mean)} (${write(estimate.low)} to ${write(estimate.high)})` : "–";
