import { events, get } from "../api.js";
import { h, replace, table } from "../dom.js";
import { age, presence } from "../format.js";

// What a person can look through; the search narrows the rest down.
const SHOWN = 500;
const FETCHED = 10000;
let lastSearch = "";

export async function devicesView(main) {
  let devices = [];
  const summary = h("span", { class: "summary" });
  const list = h("div");
  const search = h("input", {
    type: "search", value: lastSearch, placeholder: "Host, UUID, address, gateway, #tag", "aria-label": "Search devices",
    oninput: () => { lastSearch = search.value; draw(); },
  });
  replace(main, h("div", { class: "heading" }, h("h1", {}, "Devices"), summary, search), list);

  const load = async () => {
    const answer = await get(`/api/v1/devices?$top=${FETCHED}&$count=true`);
    devices = answer.data;
    draw();
  };
  const draw = () => {
    const found = devices.filter(matcher(lastSearch));
    const connected = devices.filter((device) => device.connectionStatus).length;
    summary.textContent = `${found.length} of ${devices.length}, ${connected} connected` +
      (found.length > SHOWN ? `; the first ${SHOWN} are shown` : "");
    replace(list, table(COLUMNS, found.slice(0, SHOWN), {
      empty: devices.length ? "No device matches." : "No device has registered yet.",
    }));
  };
  await load();
  search.focus();

  let pending = null;
  const stopEvents = events((kind) => {
    if (!["device", "gateway", "lagged"].includes(kind) || pending !== null) return;
    pending = setTimeout(() => { pending = null; load().catch(() => {}); }, 1000);
  });
  // Ages go on while nothing happens.
  const clock = setInterval(draw, 10000);
  return () => { stopEvents(); clearTimeout(pending); clearInterval(clock); };
}

const COLUMNS = [
  { title: "Host", cell: (d) => h("a", { href: `#/devices/${d.guid}`, class: "name" }, nameOf(d)) },
  { title: "Last answer", cell: presenceMark },
  { title: "State", cell: (d) => [d.state, contested(d)] },
  { title: "Address", class: "code", cell: (d) => d.address },
  { title: "Gateway", cell: (d) => d.gateway },
  { title: "Tags", cell: (d) => tags(d.tags ?? []) },
  { title: "UUID", class: "code faint", cell: (d) => h("span", { title: d.guid }, d.guid.slice(0, 8)) },
  { title: "", class: "end", cell: (d) => h("a", { href: `#/devices/${d.guid}/terminal`, "aria-label": `Terminal of ${nameOf(d)}` }, "Terminal") },
];

export function presenceMark(device) {
  const { class: kind, text } = presence(device);
  const title = device.lastAnswer ? `last verified answer ${age(device.lastAnswer)} ago` : "no verified answer yet";
  return h("span", { class: `presence ${kind}`, title }, text);
}

// What people call it, else what it calls itself.
export function nameOf(device) { return device.friendlyName || device.hostname || device.guid; }

export function contested(device) {
  return device.contested && h("span", { class: "badge warn", title: device.claim?.reason ?? "" }, "contested");
}

export function tags(list) {
  return list.map((tag) => h("span", { class: "tag" }, tag));
}

// Every word must match; #word matches a whole tag.
function matcher(text) {
  const wanted = text.toLowerCase().split(/\s+/).filter(Boolean);
  return (device) => {
    const own = (device.tags ?? []).map((tag) => tag.toLowerCase());
    const all = [device.friendlyName, device.hostname, device.guid, device.address, device.gateway, device.state, device.mac,
      device.contested ? "contested" : "", ...own].join("\n").toLowerCase();
    return wanted.every((word) => (word.startsWith("#") ? own.includes(word.slice(1)) : all.includes(word)));
  };
}
