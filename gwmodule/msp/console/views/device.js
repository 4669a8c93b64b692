import { call, get, may, request } from "../api.js";
import { ago, busy, choice, copy, dialog, facts, field, h, moment, notice, replace, table, tabs } from "../dom.js";
import { size, time, words } from "../format.js";
import { keepFresh } from "../live.js";
import { go, mount, problem } from "../router.js";
import { auditTable } from "./audit.js";
import { contested, nameOf, presenceMark, tags } from "./devices.js";

const TABS = { overview: "Overview", inventory: "Inventory", events: "Event log", explain: "Explain", audit: "Audit" };
// What needs the device, or is about people, is for technicians.
const ALL_MAY = new Set(["overview", "explain"]);
const NO_LOGIN = "no AMT login stored for this device";
const LOST = "Whatever is not saved on the PC is lost.";
// AMT refuses these while somebody looks at the serial line, so the gateway ends that first.
const ENDS = "An open terminal is closed and told why.";
const ASKS = "The PC's operating system is asked and does it in its own time, or not at all.";
const POWER = [
  ["on", "On", "The PC is switched on. One that is on already stays as it is."],
  ["reset", "Reset", `The PC restarts at once, as with its reset button. ${LOST}`],
  ["cycle", "Power cycle", `The PC is switched off and on again at once. ${LOST} ${ENDS}`],
  ["off", "Off", `The PC is switched off at once, as if its button were held down. ${LOST} ${ENDS}`],
  ["soft-reset", "Ask the OS to restart", ASKS], ["soft-off", "Ask the OS to shut down", `${ASKS} ${ENDS}`],
];
const RESULTS = new Set(["ok", "note", "failed", "skipped"]);
export const BOOTS = [
  ["bios", "BIOS setup"], ["pxe", "Network (PXE)"], ["hdd", "Hard disk"], ["cd", "CD or DVD"],
  ["diagnostics", "Diagnostics"], ["uefi-https", "UEFI HTTPS boot"],
];

export async function deviceView(main, guid, tab = "overview") {
  const device = await get(`/api/v1/devices/${guid}`);
  const name = nameOf(device);
  main.dataset.title = name;
  const marks = (now) => [presenceMark(now, "answered ", " ago"), contested(now)];
  const mark = h("span", {}, marks(device));
  const pane = h("section", { role: "tabpanel", "aria-label": TABS[tab] ?? TABS.overview, tabindex: -1 });
  mount(main,
    h("div", { class: "heading" },
      h("h1", {}, name), mark,
      h("a", { class: "button primary", href: `#/devices/${guid}/terminal` }, "Terminal")),
    tabs(Object.entries(TABS).filter(([key]) => ALL_MAY.has(key) || may("technician"))
      .map(([key, text]) => ({ path: `/devices/${guid}/${key}`, text, selected: key === tab }))),
    pane);
  const view = { overview, inventory, events: eventLog, explain, audit }[tab] ?? overview;
  const draw = () => view(pane, device).catch((error) => replace(pane, problem(error, draw)));
  draw();
  return keepFresh(async () => replace(mark, marks(await get(`/api/v1/devices/${guid}`))), { kinds: [], every: 10000 });
}

// ---- overview: the record, power, one-time boot, login, tags

async function overview(pane, device) {
  const stored = may("technician") && await get(`/api/v1/devices/${device.guid}/credential`)
    .catch((error) => { if (error.status === 404) return {}; throw error; });
  const again = async () => { await overview(pane, device); pane.focus(); };
  replace(pane, h("div", { class: "columns" },
    h("div", {}, power(device, stored), record(device)),
    h("div", {}, boot(device), login(device, stored, again), label(device), forget(device))));
}

function power(device, stored) {
  if (!may("technician")) return null;
  const state = h("span", { class: "value" }, "not asked yet");
  const say = (text) => replace(state, text);
  const ask = async () => {
    say("asking…");
    try {
      say(body(await call(device.guid, "power.get")).power_state_name ?? "unknown");
    } catch (error) {
      say(error.message);
    }
  };
  const act = async (key, text, effect) => {
    if (!await dialog({ title: `${text}: ${nameOf(device)}?`, confirm: text, danger: key !== "on", text: effect })) return;
    say(`${text.toLowerCase()}…`);
    const set = (force) => call(device.guid, "power.set", { state: key, wait: 10, ...force });
    try {
      const answer = body(await set().catch(async (error) => {
        if (error.error !== "BUSY") throw error;
        const anyway = { title: "Close the terminal of somebody else?", text: `${error.message}.`, confirm: `${text} anyway`, danger: true };
        if (!await dialog(anyway)) throw error;
        return set({ force: true });
      }));
      notice(`${answer.requested_name ?? key}: done${answer.verified === false ? ", but the new state was not seen yet" : ""}`);
      say(answer.power_state_name ?? "unknown");
    } catch (error) {
      say("not known: ask again");
      throw error;
    }
  };
  if (stored.username) ask();
  else say(`not known: ${NO_LOGIN}`);
  return h("div", { class: "panel" }, h("h2", {}, "Power"),
    h("p", { class: "state", "aria-live": "polite" }, state,
      h("button", { type: "button", class: "plain", onclick: (event) => busy(event.target, ask) }, "Ask again")),
    h("div", { class: "buttons" }, POWER.map(([key, text, effect]) =>
      h("button", { type: "button", title: effect, onclick: (event) => busy(event.target, () => act(key, text, effect)) }, text))));
}

function boot(device) {
  if (!may("technician")) return null;
  const url = field("Image", "url", { type: "url", placeholder: "https://host/image.efi", maxlength: 1024 });
  url.hidden = true;
  const form = h("form", {
    class: "panel",
    onchange: () => { url.hidden = form.elements.device.value !== "uefi-https"; },
    onsubmit: async (event) => {
      event.preventDefault();
      const values = new FormData(form);
      const now = values.get("power") === "now";
      const text = BOOTS.find(([key]) => key === values.get("device"))[1];
      await busy(event.submitter, async () => {
        if (now && !await dialog({ title: `Restart ${nameOf(device)}?`, confirm: "Restart", danger: true, text: `It starts ${text} once: a PC that is on is reset, and one that is off switched on. ${LOST}` })) return;
        const args = { device: values.get("device"), power: values.get("power") };
        if (args.device === "uefi-https") args.url = values.get("url");
        const answer = body(await call(device.guid, "boot.once", args));
        notice(now ? `${answer.requested_name ?? "boot"}: ${text}` : `the next boot is ${text}`);
      });
    },
  },
  h("h2", {}, "One-time boot"),
  choice("From", "device", BOOTS), url,
  choice("When", "power", [["now", "now: reset or switch on"], ["later", "at the next start"]]),
  h("div", { class: "buttons" }, h("button", {}, "Boot once"),
    h("a", { href: `#/devices/${device.guid}/terminal` }, "or reset and watch in the terminal")));
  return form;
}

function record(device) {
  const claim = device.claim;
  return h("div", { class: "panel" }, h("h2", {}, "Record"),
    claim && h("p", { class: "warning" }, `Contested: ${claim.reason || "another place claims this device"}. ` +
      `Claimed by ${claim.gateway}, ${claim.mac ?? "MAC unknown"}, ${claim.address}, ${time(claim.at)}. ` +
      "It stays usable where it proved itself last."),
    facts([
      ["UUID", h("span", { class: "code" }, device.guid, " ", h("button", { type: "button", class: "plain", onclick: (event) => busy(event.currentTarget, () => copy(device.guid, event.currentTarget)) }, "Copy", h("span", { class: "unseen" }, " the UUID")))],
      ["Host name", device.hostname], ["Friendly name", device.friendlyName], ["State", device.state],
      ["Address", h("span", { class: "code" }, `${device.address}${device.mac ? `  ${device.mac}` : ""}`)],
      ["Gateway", `${device.gateway}${device.gatewayAddress ? ` (${device.gatewayAddress}:${device.gatewayPort})` : ""}`],
      ["Last answer", device.lastAnswer && h("span", {}, ago(device.lastAnswer), " ago, ", moment(device.lastAnswer))],
      ["First seen", moment(device.firstSeen)], ["Last seen", moment(device.lastSeen)], ["Gone since", moment(device.gone)],
      ["Known by", device.source], ["Proved", moment(device.proved)],
      ["Firmware", device.server], ["Realm", device.realm], ["Ports", (device.ports ?? []).join(", ")],
      ["TLS", device.tls],
      ["Certificate", device.pin && h("span", { class: "code wrap" }, device.pin)],
    ]));
}

function login(device, stored, again) {
  if (!may("technician")) return null;
  const said = h("p", { class: "faint" }, stored.username
    ? `${stored.username} is stored${stored.changed ? ` since ${time(stored.changed)}` : ""}. The password is never shown.`
    : `There is ${NO_LOGIN}. It is the one that was set in AMT’s own setup.`);
  const form = h("form", {
    class: "panel",
    onsubmit: async (event) => {
      event.preventDefault();
      const values = Object.fromEntries(new FormData(form));
      await busy(event.submitter, async () => {
        await request("PUT", `/api/v1/devices/${device.guid}/credential`, values);
        notice("The login is stored.");
        await again();
      });
    },
  },
  h("h2", {}, "AMT login"), said,
  may("admin") ? [
    field("User", "username", { required: true, value: stored.username ?? "admin", maxlength: 255 }),
    field("Password", "password", { required: true, type: "password", autocomplete: "new-password", maxlength: 255 }),
    h("div", { class: "buttons" }, h("button", {}, "Store"),
      stored.username && h("button", {
        type: "button", class: "danger", onclick: (event) => busy(event.target, async () => {
          if (!await dialog({ title: "Remove the stored login?", confirm: "Remove", danger: true, text: "Until one is stored again, nothing can be done with this device from here. Its own login stays as it is." })) return;
          await request("DELETE", `/api/v1/devices/${device.guid}/credential`);
          await again();
        }),
      }, "Remove"))] : null);
  return form;
}

function label(device) {
  if (!may("technician") && !device.tags?.length) return null;
  const shown = h("p", {}, tags(device.tags ?? []));
  const form = h("form", {
    class: "panel",
    onsubmit: async (event) => {
      event.preventDefault();
      const list = [...new Set(form.elements.tags.value.split(/[\s,]+/).filter(Boolean))];
      const friendlyName = form.elements.friendlyName.value.trim();
      await busy(event.submitter, async () => {
        await request("PATCH", "/api/v1/devices", { guid: device.guid, tags: list, friendlyName });
        replace(shown, tags(list));
        notice("Saved.");
      });
    },
  },
  h("h2", {}, "Label"), shown,
  may("technician") && [field("Friendly name", "friendlyName", { value: device.friendlyName ?? "", maxlength: 255 }),
    field("Tags, separated by spaces", "tags", { value: (device.tags ?? []).join(" "), maxlength: 500 }),
    h("div", { class: "buttons" }, h("button", {}, "Save"))]);
  return form;
}

function forget(device) {
  if (!may("admin")) return null;
  return h("div", { class: "panel" }, h("h2", {}, "Administration"), h("div", { class: "buttons" },
    device.pin && h("button", {
      type: "button", onclick: (event) => busy(event.target, async () => {
        if (!await dialog({ title: "Trust the next certificate?", confirm: "Trust", danger: true, text: `${nameOf(device)} is believed to be whoever shows the next certificate. Only after somebody changed it on purpose.` })) return;
        await request("POST", `/api/v1/devices/${device.guid}/unpin`);
        notice("The next certificate will be pinned.");
      }),
    }, "Reset the pinned certificate"),
    h("button", {
      type: "button", class: "danger", onclick: (event) => busy(event.target, async () => {
        if (!await dialog({ title: `Forget ${nameOf(device)}?`, confirm: "Forget", danger: true, text: "Its record, labels and stored login are removed. It comes back when it is seen again, without them." })) return;
        await request("DELETE", `/api/v1/devices/${device.guid}`);
        go("/devices");
      }),
    }, "Forget this device")));
}

// ---- what is read from the device when somebody asks

async function inventory(pane, device) {
  replace(pane, h("p", { class: "wait" }, "Reading the inventory…"));
  const found = body(await call(device.guid, "inventory.get", {}, 120));
  const part = (title, rows, columns) => rows?.length > 0 && h("div", { class: "panel" }, h("h2", {}, title), table(columns, rows));
  const column = (title, key, cell) => ({ title, cell: cell ?? ((row) => text(row[key])) });
  replace(pane,
    h("div", { class: "panel" }, h("h2", {}, "AMT"), facts([["Version", found.version], ["UUID", h("span", { class: "code" }, found.uuid ?? "")]])),
    part("Chassis", found.chassis, [column("Manufacturer", "manufacturer"), column("Model", "model"), column("Version", "version"), column("Serial", "serial")]),
    part("Boards", found.boards, [column("Manufacturer", "manufacturer"), column("Model", "model"), column("Version", "version"), column("Serial", "serial")]),
    part("BIOS", found.bios, [column("Manufacturer", "manufacturer"), column("Version", "version"), column("Released", "", (row) => time(row.released)?.slice(0, 10) ?? "–")]),
    part("Processors", found.processors, generic(found.processors)),
    part("Memory", found.memory, generic(found.memory)),
    part("Disks", found.disks, generic(found.disks)),
    part("Could not be read", found.missing, generic(found.missing)));
}

async function eventLog(pane, device) {
  replace(pane, h("p", { class: "wait" }, "Reading the event log…"));
  const found = body(await call(device.guid, "eventlog.get", {}, 120));
  replace(pane,
    h("p", { class: "faint" }, `${found.records.length} records${found.capacity ? ` of at most ${found.capacity}` : ""}${found.frozen ? "; the log is frozen" : ""}`),
    table([
      { title: "Time", class: "code bare", cell: (r) => moment(r.time) },
      { title: "Severity", class: "bare", cell: (r) => text(r.severity_name ?? r.severity) },
      { title: "From", class: "bare", cell: (r) => text(r.entity_name ?? r.entity) },
      { title: "Event", class: "wide bare", cell: (r) => text(r.text) },
    ], found.records, { empty: "The event log is empty." }));
}

async function explain(pane, device) {
  replace(pane, h("p", { class: "wait" }, "Walking the way to the device…"));
  const found = await get(`/api/v1/devices/${device.guid}/explain`);
  replace(pane,
    h("p", { class: "verdict" }, found.reachable ? "It can be reached." : "It cannot be reached."),
    h("ol", { class: "steps" }, found.steps.map((step) => h("li", { class: RESULTS.has(step.result) ? step.result : "" },
      h("span", { class: "result" }, step.result), h("strong", {}, step.step), h("span", {}, step.found),
      step.advice && h("p", { class: "advice" }, step.advice)))));
}

async function audit(pane, device) {
  replace(pane, auditTable(await get(`/api/v1/audit?guid=${device.guid}&limit=200`)));
}

// ---- helpers

function body(answer) { return answer.result ?? {}; }

function text(value) {
  if (value === null || value === undefined || value === "") return "–";
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

const MHZ = new Set(["clock", "max_clock", "speed", "max_speed"]);

// A column for every key that a person reads; numbers that have a name are left to the name.
function generic(rows) {
  const keys = [...new Set((rows ?? []).flatMap((row) => Object.keys(row)))];
  return keys.filter((key) => !keys.includes(`${key}_name`)).map((key) => ({
    title: words(key.replace(/_name$/, "")),
    cell: (row) => (key === "size" ? size(row[key]) ?? "–" : MHZ.has(key) && row[key] ? `${row[key]} MHz` : text(row[key])),
  }));
}
