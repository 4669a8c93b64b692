import { get, may, request } from "../api.js";
import { ago, busy, dialog, field, h, liveTable, moment, showOnce } from "../dom.js";
import { milliseconds, time } from "../format.js";
import { keepFresh } from "../live.js";
import { mount } from "../router.js";

const NONE = "No gateway yet. One beside the PCs is all that is needed: ";

export async function gatewaysView(main) {
  const load = async () => list.update(await get("/api/v1/gateways"), NONE + (may("admin")
    ? "“Enrol a gateway…” makes a token and the command that is run there."
    : "an admin enrols it on this page."));
  const list = liveTable(columns(() => load()), { key: (g) => g.name });
  const enrol = h("button", { type: "button", class: "primary", onclick: (event) => busy(event.target, () => enrolNew(load)) }, "Enrol a gateway…");
  await load();
  mount(main, h("div", { class: "heading" }, h("h1", {}, "Gateways"), may("admin") && enrol), list.element);
  return keepFresh(load, { kinds: ["gateway"], every: 15000 });
}

const columns = (load) => [
  { title: "Gateway", class: "first", cell: (g) => h("span", { class: "name", title: g.name }, g.name), sort: (g) => g.name },
  { title: "Link", class: "bare", cell: (g) => link(g), sort: (g) => (g.connectionStatus ? "1" : g.lastDisconnected ?? "0") },
  { title: "Round trip", class: "number", cell: (g) => g.rtt && milliseconds(g.rtt), sort: (g) => g.rtt ?? 0 },
  { title: "Address after NAT", class: "code", cell: (g) => g.address && `${g.address}:${g.port}` },
  { title: "Software", cell: (g) => g.software },
  { title: "Last link began", class: "code", cell: (g) => moment(g.lastLink), sort: (g) => g.lastLink ?? "" },
  { title: "Certificate", class: "code faint", cell: (g) => g.fingerprint && h("span", { title: g.fingerprint }, g.fingerprint.slice(0, 16)) },
  { title: "Actions", hidden: true, class: "end", cell: (g) => may("admin") && !g.revoked && [
    h("button", { type: "button", class: "plain", "aria-label": `Enrol again: ${g.name}`, onclick: (event) => busy(event.target, () => enrolAgain(g.name, load)) }, "Enrol again"),
    h("button", { type: "button", class: "plain danger", "aria-label": `Revoke ${g.name}`, onclick: (event) => busy(event.target, () => revoke(g.name, load)) }, "Revoke")] },
];

function link(gateway) {
  if (gateway.revoked) return h("span", { class: "badge off" }, "revoked");
  if (gateway.connectionStatus) return h("span", { class: "presence on" }, "up");
  return h("span", { class: "presence off" }, gateway.lastDisconnected ? ["down for ", ago(gateway.lastDisconnected)] : "never linked");
}

async function enrolNew(load) {
  const values = await dialog({
    title: "Enrol a gateway", confirm: "Make the token",
    text: "The token works once. The command makes the gateway's key on the gateway itself.",
    body: [field("Name", "name", { required: true, pattern: "[A-Za-z0-9._\\-]{1,64}", maxlength: 64, placeholder: "home-1" })],
  });
  if (values) await enrolment(values.name.trim(), load);
}

async function enrolAgain(name, load) {
  const values = await dialog({
    title: `Enrol ${name} again?`, confirm: "Make the token",
    text: "For a box that was replaced or reset. The old certificate ends when the token is used; if its key was stolen, revoke it first.",
  });
  if (values) await enrolment(name, load, { replace: true });
}

async function enrolment(name, load, body = {}) {
  const answer = await request("POST", `/api/v1/gateways/${encodeURIComponent(name)}/enrolment`, body);
  showOnce(`Enrol ${name}`, `Shown once${answer.expires ? `, and good until ${time(answer.expires)}` : ""}. Run it on the gateway as root.`,
    [["Command", answer.command], ["Token", answer.token]]);
  await load();
}

async function revoke(name, load) {
  const values = await dialog({
    title: `Revoke ${name}?`, confirm: "Revoke", danger: true,
    text: "Its link ends now and it is not let in again. Its devices stay in the registry.",
  });
  if (!values) return;
  await request("DELETE", `/api/v1/gateways/${encodeURIComponent(name)}`);
  await load();
}
