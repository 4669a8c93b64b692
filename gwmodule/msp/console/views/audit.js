import { get } from "../api.js";
import { h, moment, table } from "../dom.js";
import { shortGuid } from "../format.js";
import { mount } from "../router.js";

const LIMIT = 500;

export async function auditView(main) {
  const entries = await get(`/api/v1/audit?limit=${LIMIT}`);
  mount(main, h("div", { class: "heading" }, h("h1", {}, "Audit"),
    h("span", { class: "summary" }, entries.length < LIMIT ? `${entries.length} entries` : `the last ${LIMIT} entries; gwmodule-msp audit has them all`)),
  auditTable(entries));
}

export function auditTable(entries) {
  return table([
    { title: "Time", class: "code bare", cell: (e) => moment(e.at) },
    { title: "Who", class: "bare", cell: (e) => e.actor },
    { title: "What", class: "bare", cell: (e) => e.action },
    { title: "Gateway", class: "bare", cell: (e) => e.gateway },
    { title: "Device", class: "code bare", cell: (e) => e.guid && h("a", { href: `#/devices/${e.guid}`, title: e.guid }, shortGuid(e.guid)) },
    { title: "Detail", class: "wide bare", cell: (e) => detail(e.detail) },
  ], entries);
}

function detail(fields) {
  const text = Object.entries(fields ?? {}).filter(([, value]) => value !== "" && value !== null)
    .map(([name, value]) => `${name} ${typeof value === "object" ? JSON.stringify(value) : value}`);
  return text.join(", ");
}
