import { get, may } from "../api.js";
import { ago, h, liveTable, replace, tabs, visible } from "../dom.js";
import { presence, shortGuid } from "../format.js";
import { keepFresh } from "../live.js";
import { mount } from "../router.js";

// What a person can look through; the search narrows the rest down.
const SHOWN = 500;
const FETCHED = 10000;
export const CANDIDATES = "/api/v1/candidates";
const FOUND = "/devices/found";
let lastSearch = "";

export async function devicesView(main) {
  let devices = [];
  let found = 0;
  const summary = h("span", { class: "summary", role: "status" });
  const list = liveTable(COLUMNS, { key: (d) => d.guid, also: (d) => presence(d).class, limit: SHOWN });
  const search = h("input", {
    type: "search", value: lastSearch, placeholder: "Host, UUID, address, gateway, #tag", "aria-label": "Search devices",
    oninput: () => { lastSearch = search.value; draw(); },
    onkeydown: (event) => { if (event.key === "Enter") open(); },
  });

  const parts = deviceTabs("registered");

  const load = async () => {
    const [answer, candidates] = await Promise.all([get(`/api/v1/devices?$top=${FETCHED}&$count=true`), get(CANDIDATES)]);
    devices = answer.data;
    found = candidates.length;
    parts.count(found);
    draw();
  };
  const draw = () => {
    const matching = devices.filter(matcher(lastSearch));
    const connected = devices.filter((device) => device.connectionStatus).length;
    replace(summary, devices.length > 0 && `${matching.length} of ${devices.length}, ${connected} connected${matching.length > SHOWN ? `; the first ${SHOWN} are shown` : ""}`);
    list.update(matching, devices.length ? "No device matches." : firstSteps(found));
  };
  // The one that is meant, or the first of several to choose from.
  const open = () => {
    const links = list.element.querySelectorAll("tbody .name");
    if (links.length === 1) links[0].click();
    else links[0]?.focus();
  };
  await load();
  mount(main, h("div", { class: "heading" }, h("h1", {}, "Devices"), summary, search), parts.element, list.element);
  // On a telephone the keyboard would hide the list.
  if (matchMedia("(pointer: fine)").matches) search.focus();
  return keepFresh(load, { kinds: ["device", "gateway"], every: 30000 });
}

// The registered ones and those that only answer: `count` says of how many.
export function deviceTabs(selected) {
  const number = h("span");
  return {
    element: tabs([
      { path: "/devices", text: "Registered", selected: selected === "registered" },
      { path: FOUND, text: ["Found, not identified yet", number], selected: selected === "found" },
    ]),
    count(found) { replace(number, found > 0 && ` (${found})`); },
  };
}

const firstSteps = (found) => [
  h("p", {}, "No device has registered yet. First ", may("admin") ? h("a", { href: "#/gateways" }, "enrol a gateway") : "an admin enrols a gateway",
    " beside the PCs. Once its link is up:"),
  h("ul", {},
    h("li", {}, "A PC whose AMT is new registers by itself when its setup server is the gateway’s address."),
    h("li", {}, "A PC whose AMT has a login already is found by the gateway and registered with that login: ",
      h("a", { href: `#${FOUND}` }, found === 0 ? "none is found yet" : `${found} found, not identified yet`), "."))];

const COLUMNS = [
  { title: "Host", class: "first", cell: (d) => h("a", { href: `#/devices/${d.guid}`, class: "name", title: nameOf(d) }, nameOf(d)), sort: (d) => nameOf(d) },
  { title: "Last answer", class: "bare", cell: (d) => presenceMark(d), sort: (d) => d.lastAnswer ?? "" },
  { title: "State", class: "bare", cell: (d) => [d.state, contested(d)], sort: (d) => `${d.state}${d.contested}` },
  { title: "Address", class: "code bare", cell: (d) => d.address, sort: (d) => d.address },
  { title: "Gateway", class: "bare", cell: (d) => d.gateway, sort: (d) => d.gateway },
  { title: "Tags", class: "bare", cell: (d) => tags(d.tags ?? []) },
  { title: "UUID", class: "code faint bare", cell: (d) => h("span", { title: d.guid }, shortGuid(d.guid)), sort: (d) => d.guid },
  { title: "Terminal", hidden: true, class: "end", cell: (d) => h("a", { href: `#/devices/${d.guid}/terminal`, "aria-label": `Terminal of ${nameOf(d)}` }, "Terminal") },
];

export function presenceMark(device, before = "", after = "") {
  const { class: kind, text, since } = presence(device);
  return h("span", { class: `presence ${kind}` }, since ? [before, ago(since), after] : text);
}

// What people call it, else what it calls itself.
export function nameOf(device) { return visible(device.friendlyName || device.hostname || device.guid); }

export function contested(device) {
  return device.contested && h("span", { class: "badge warn", title: device.claim?.reason || "another place claims this device" }, "contested");
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
