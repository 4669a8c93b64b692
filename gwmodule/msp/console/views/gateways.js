import { events, get, may, request } from "../api.js";
import { busy, dialog, field, h, replace, showOnce, table } from "../dom.js";
import { age, milliseconds, time } from "../format.js";

export async function gatewaysView(main) {
  const list = h("div");
  const load = async () => replace(list, table(columns(load), await get("/api/v1/gateways"), {
    empty: "No gateway yet. Enrol the first one.",
  }));
  const enrol = h("button", { type: "button", class: "primary", onclick: (event) => busy(event.target, () => enrolNew(load)) }, "Enrol a gateway…");
  replace(main, h("div", { class: "heading" }, h("h1", {}, "Gateways"), may("admin") && enrol), list);
  await load();
  const stop = events((kind) => { if (kind === "gateway") load().catch(() => {}); });
  const clock = setInterval(() => load().catch(() => {}), 15000);
  return () => { stop(); clearInterval(clock); };
}

const columns = (load) => [
  { title: "Gateway", cell: (g) => h("span", { class: "name" }, g.name) },
  { title: "Link", cell: (g) => link(g) },
  { title: "Round trip", class: "number", cell: (g) => milliseconds(g.rtt) },
  { title: "Address after NAT", class: "code", cell: (g) => g.address && `${g.address}:${g.port}` },
  { title: "Software", cell: (g) => g.software },
  { title: "Linked since", class: "code", cell: (g) => time(g.lastLink) },
  { title: "Certificate", class: "code faint", cell: (g) => g.fingerprint && h("span", { title: g.fingerprint }, g.fingerprint.slice(0, 16)) },
  { title: "", class: "end", cell: (g) => may("admin") && !g.revoked && [
    h("button", { type: "button", class: "plain", onclick: (event) => busy(event.target, () => enrolAgain(g.name, load)) }, "Enrol again"),
    h("button", { type: "button", class: "plain danger", onclick: (event) => busy(event.target, () => revoke(g.name, load)) }, "Revoke")] },
];

function link(gateway) {
  if (gateway.revoked) return h("span", { class: "badge off" }, "revoked");
  if (gateway.connectionStatus) return h("span", { class: "presence on" }, "up");
  return h("span", { class: "presence off" }, gateway.lastDisconnected ? `down for ${age(gateway.lastDisconnected)}` : "never linked");
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
    text: "For a box that was replaced or reset. The old certificate ends when the new one is used.",
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
