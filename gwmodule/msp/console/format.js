// Times, sizes and states in words.

// Two rounds of a gateway's probes.
const FRESH = 600_000;

export function age(iso, now = Date.now()) {
  if (!iso) return "never";
  const seconds = Math.max(0, (now - Date.parse(iso)) / 1000);
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86400)} d`;
}

// ISO text or seconds since 1970, in the technician's zone.
export function time(value) {
  if (value === null || value === undefined || value === "") return null;
  const moment = new Date(typeof value === "number" ? value * 1000 : value);
  if (Number.isNaN(moment.valueOf())) return String(value);
  const pad = (number) => String(number).padStart(2, "0");
  return `${moment.getFullYear()}-${pad(moment.getMonth() + 1)}-${pad(moment.getDate())} ` +
    `${pad(moment.getHours())}:${pad(moment.getMinutes())}:${pad(moment.getSeconds())}`;
}

// For who wants it exactly: with the day of the week, the zone, and the same in UTC.
export function fullTime(value) {
  const moment = new Date(typeof value === "number" ? value * 1000 : value);
  if (Number.isNaN(moment.valueOf())) return String(value);
  return `${moment.toLocaleString(undefined, { dateStyle: "full", timeStyle: "long" })} (${moment.toISOString()})`;
}

// AMT's UUIDs begin alike for a whole make of PCs and differ at the end.
export function shortGuid(guid) { return `…${guid.slice(-12)}`; }

export function milliseconds(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const ms = seconds * 1000;
  return ms < 10 ? `${ms.toFixed(1)} ms` : `${Math.round(ms)} ms`;
}

export function size(bytes) {
  if (!bytes) return null;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = Math.min(Math.floor(Math.log2(bytes) / 10), units.length - 1);
  return `${Number((bytes / 1024 ** power).toFixed(1))} ${units[power]}`;
}

export function words(name) {
  const text = name.replace(/_/g, " ");
  return text.charAt(0).toUpperCase() + text.slice(1);
}

// How sure we are that the device would answer now. `since`: the last verified answer.
export function presence(device) {
  if (!device.connectionStatus) return { class: "off", text: device.gone ? "gone" : "gateway away" };
  if (!device.lastAnswer) return { class: "off", text: "no answer yet" };
  const fresh = Date.now() - Date.parse(device.lastAnswer) < FRESH;
  return { class: fresh ? "on" : "old", since: device.lastAnswer };
}
