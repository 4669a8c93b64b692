import { get } from "../api.js";
import { h, replace, table } from "../dom.js";
import { time } from "../format.js";

export async function auditView(main) {
  const limit = 500;
  replace(main, h("div", { class: "heading" }, h("h1", {}, "Audit")), auditTable(await get(`/api/v1/audit?limit=${limit}`)));
}

export function auditTable(entries) {
  return table([
    { title: "Time", class: "code", cell: (e) => time(e.at) },
    { title: "Who", cell: (e) => e.actor },
    { title: "What", cell: (e) => e.action },
    { title: "Gateway", cell: (e) => e.gateway },
    { title: "Device", class: "code", cell: (e) => e.guid && h("a", { href: `#/devices/${e.guid}` }, e.guid.slice(0, 8)) },
    { title: "Detail", class: "wide", cell: (e) => detail(e.detail) },
  ], entries);
}

function detail(fields) {
  const text = Object.entries(fields ?? {}).filter(([, value]) => value !== "" && value !== null)
    .map(([name, value]) => `${name} ${typeof value === "object" ? JSON.stringify(value) : value}`);
  return text.join(", ");
}
