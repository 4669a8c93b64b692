// AMT hosts that answer and whose UUID nobody knows: a login learns it, and makes each a device.

import { get, may, request } from "../api.js";
import { busy, choice, dialog, field, h, liveTable, notice, tick } from "../dom.js";
import { keepFresh } from "../live.js";
import { go, mount } from "../router.js";
import { CANDIDATES, deviceTabs, presenceMark } from "./devices.js";

const NONE = "Nothing. A host is listed here when its gateway hears it answer as AMT and no registered device is at its MAC. " +
  "A PC that is on and missing here: its AMT is not set up, or it is on a network where the gateway does not look.";
const SETUP = { pre: "not set up", in: "in setup", post: "set up" };
const DEADLINE = 60;
const HASH = "The gateway is given a hash of the password that is good at this device only: its digest realm is known.";
const PASSWORD = "This is the first contact: the device has not told its digest realm yet, and without it no hash can be made " +
  "that is good at this device only. So the gateway is sent the password itself, over its encrypted link, and uses it for this " +
  "one login. Later it only gets the hash.";

export async function candidatesView(main) {
  const parts = deviceTabs("found");
  const list = liveTable(COLUMNS, { key: (c) => `${c.gateway} ${c.mac}`, also: (c) => presenceMark(c).className });
  const load = async () => {
    const found = await get(CANDIDATES);
    parts.count(found.length);
    list.update(found, NONE);
  };
  await load();
  mount(main, h("div", { class: "heading" }, h("h1", {}, "Devices"),
    !may("technician") && h("span", { class: "summary" }, "A technician identifies them.")), parts.element, list.element);
  return keepFresh(load, { kinds: ["device", "gateway"], every: 15000 });
}

const COLUMNS = [
  { title: "Host", class: "first", cell: (c) => h("span", { class: "name", title: nameOf(c) }, nameOf(c)), sort: nameOf },
  { title: "Last answer", class: "bare", cell: (c) => presenceMark(c), sort: (c) => c.lastAnswer ?? "" },
  { title: "AMT", class: "bare", cell: (c) => SETUP[c.provisioning] },
  { title: "Address", class: "code bare", cell: (c) => c.address, sort: (c) => c.address },
  { title: "MAC", class: "code bare", cell: (c) => c.mac, sort: (c) => c.mac },
  { title: "Gateway", class: "bare", cell: (c) => c.gateway, sort: (c) => c.gateway },
  { title: "Firmware", cell: (c) => c.server },
  { title: "Actions", hidden: true, class: "end", cell: (c) => may("technician") &&
    h("button", { type: "button", class: "plain", "aria-label": `Identify ${nameOf(c)}`, onclick: (event) => busy(event.target, () => identify(c)) }, "Identify") },
];

function nameOf(candidate) { return candidate.hostname || candidate.mac; }

async function identify(candidate) {
  const common = await get("/api/v1/credential").catch((error) => { if (error.status === 404) return null; throw error; });
  const whose = common && choice("Login", "login", [["common", `the default login (${common.username})`], ["own", "another one"]]);
  const own = h("fieldset", {},
    field("AMT user", "username", { required: true, value: "admin", maxlength: 255 }),
    field("AMT password", "password", { required: true, type: "password", autocomplete: "new-password", maxlength: 255 }),
    may("admin") && tick("Store this login for the device", "store", { checked: true }));
  const choose = () => { own.hidden = own.disabled = whose?.querySelector("select").value === "common"; };
  whose?.addEventListener("change", choose);
  choose();
  let device = null;
  await dialog({
    title: `Identify ${nameOf(candidate)}`, confirm: "Identify",
    text: `Gateway ${candidate.gateway} logs in to AMT at ${candidate.address} and reads its UUID. ${candidate.realm ? HASH : PASSWORD}`,
    body: [whose, own, !candidate.realm && tick("Send the password itself", "allow", { required: true })],
    act: async (values) => { device = await register(candidate, values); },
  });
  if (device) go(`/devices/${device.guid}`);
}

async function register(candidate, values) {
  const { username, password } = values;
  const body = { allow_password: values.allow === "on", deadline: DEADLINE };
  if (values.login !== "common") body.credential = { username, password };
  const path = `${CANDIDATES}/${encodeURIComponent(candidate.gateway)}/${encodeURIComponent(candidate.mac)}/identify`;
  const device = await request("POST", path, body);
  // What was learnt stays learnt, whatever becomes of the login.
  if (values.store) {
    await request("PUT", `/api/v1/devices/${device.guid}/credential`, { username, password })
      .catch((error) => notice(`Identified, but the login is not stored: ${error.message}`, "error"));
  }
  return device;
}
