import { claims, get, request } from "../api.js";
import { ago, busy, choice, dialog, field, h, liveTable, moment, notice, showOnce, tick } from "../dom.js";
import { mount } from "../router.js";

const ROLES = [["viewer", "viewer: look"], ["technician", "technician: look and repair"], ["admin", "admin: everything"]];
const KEY_DAYS = 365;

export async function usersView(main) {
  let keys = [];
  const load = async () => {
    const [users, found] = await Promise.all([get("/api/v1/users"), get("/api/v1/keys")]);
    keys = found.map((key) => ({ ...key, state: stateOf(key, users) }));
    userList.update(users);
    draw();
  };
  const ended = tick("also those that have ended", "ended", { onchange: () => draw() });
  const draw = () => {
    const good = keys.filter((key) => !ENDED.has(key.state));
    ended.hidden = good.length === keys.length;
    keyList.update(ended.querySelector("input").checked ? keys : good, "No key. A script signs in with one instead of a password.");
  };
  const userList = liveTable(columns(() => load()), { key: (u) => u.name });
  const keyList = liveTable(keyColumns(() => load()), { key: (k) => k.id });
  const opens = (text, act, kind) => h("button", { type: "button", class: kind, onclick: (event) => busy(event.target, () => act(load)) }, text);
  await load();
  mount(main,
    h("div", { class: "heading" }, h("h1", {}, "Users"), opens("Add a user…", add, "primary")), userList.element,
    h("div", { class: "heading more" }, h("h2", {}, "API keys"), ended, opens("Make a key…", addKey, "last")), keyList.element);
}

const columns = (load) => [
  { title: "User", class: "first", cell: (u) => h("span", { class: "name", title: u.name }, u.name), sort: (u) => u.name },
  { title: "Role", class: "bare", cell: (u) => u.role, sort: (u) => u.role },
  { title: "State", class: "bare", cell: (u) => (u.disabled ? h("span", { class: "badge off" }, "disabled") : "active") },
  { title: "API keys", class: "wide", cell: (u) => named(u.keys), sort: (u) => u.keys.length },
  { title: "Actions", hidden: true, class: "end", cell: (u) => [
    h("button", { type: "button", class: "plain", "aria-label": `Change ${u.name}`, onclick: (event) => busy(event.target, () => change(u, load)) }, "Change"),
    u.name !== claims().sub &&
      h("button", { type: "button", class: "plain danger", "aria-label": `Remove ${u.name}`, onclick: (event) => busy(event.target, () => remove(u, load)) }, "Remove")] },
];

const named = (keys) => keys.map((key) => key.name).join(", ");

const password = (required) => field(required ? "Password" : "New password (empty: unchanged)", "password",
  { type: "password", autocomplete: "new-password", required, minlength: 12, maxlength: 255 });

async function add(load) {
  const values = await dialog({
    title: "Add a user", confirm: "Add",
    body: [field("Name", "name", { required: true, maxlength: 64 }), choice("Role", "role", ROLES, "technician"), password(true)],
  });
  if (!values) return;
  await request("POST", "/api/v1/users", values);
  await load();
}

async function change(user, load) {
  const values = await dialog({
    title: `Change ${user.name}`, confirm: "Save", text: "A change ends this user's sessions.",
    body: [choice("Role", "role", ROLES, user.role), password(false),
      choice("State", "disabled", [["false", "active"], ["true", "disabled"]], String(Boolean(user.disabled)))],
  });
  if (!values) return;
  const body = {};
  if (values.role !== user.role) body.role = values.role;
  if (values.password) body.password = values.password;
  if ((values.disabled === "true") !== Boolean(user.disabled)) body.disabled = values.disabled === "true";
  if (Object.keys(body).length === 0) return;
  await request("PATCH", `/api/v1/users/${encodeURIComponent(user.name)}`, body);
  await load();
}

async function remove(user, load) {
  const values = await dialog({
    title: `Remove ${user.name}?`, confirm: "Remove", danger: true,
    text: "Whoever uses this name is signed out at the next click and cannot sign in again. What it did stays in the audit. " +
      (user.keys.length > 0 ? `Its API keys are revoked: ${named(user.keys)}.` : "It has no API keys."),
  });
  if (!values) return;
  const { keys } = await request("DELETE", `/api/v1/users/${encodeURIComponent(user.name)}`);
  notice(`${user.name} is removed.${keys.length > 0 ? ` Revoked with it: ${named(keys)}.` : ""}`);
  await load();
}

// ---- API keys

const ENDED = new Set(["revoked", "expired"]);

function stateOf(key, users) {
  if (key.revoked) return "revoked";
  if (key.expires && Date.parse(key.expires) <= Date.now()) return "expired";
  return users.some((user) => user.name === key.owner && user.disabled) ? "rests" : "good";
}

const keyColumns = (load) => [
  { title: "Key", class: "first", cell: (k) => h("span", { class: "name", title: k.id }, k.name), sort: (k) => k.name },
  { title: "Role", class: "bare", cell: (k) => k.role, sort: (k) => k.role },
  { title: "State", class: "bare", cell: (k) => keyState(k), sort: (k) => k.state },
  { title: "Owner", cell: (k) => k.owner ?? "the tenant", sort: (k) => k.owner ?? "" },
  { title: "Made by", cell: (k) => h("span", {}, k.maker, k.maker && ", ", moment(k.created)), sort: (k) => k.created },
  { title: "Last use", cell: (k) => (k.lastUsed ? h("span", {}, ago(k.lastUsed), " ago") : "never"), sort: (k) => k.lastUsed ?? "" },
  { title: "Good until", cell: (k) => moment(k.expires) ?? "revoked", sort: (k) => k.expires ?? "" },
  { title: "Actions", hidden: true, class: "end", cell: (k) => !ENDED.has(k.state) &&
    h("button", { type: "button", class: "plain danger", "aria-label": `Revoke ${k.name}`, onclick: (event) => busy(event.target, () => revoke(k, load)) }, "Revoke") },
];

function keyState(key) {
  if (key.state === "good") return "good";
  return h("span", { class: "badge off", title: key.state === "rests" ? "Its owner is disabled." : key.revoked }, key.state);
}

async function addKey(load) {
  let made = null;
  const values = await dialog({
    title: "Make an API key", confirm: "Make the key",
    text: "It is yours: it rests while you are disabled, never does more than you may, and ends with you.",
    body: [field("Name", "name", { required: true, maxlength: 64, placeholder: "backup" }), choice("Role", "role", ROLES, "viewer"),
      field("Good for days", "days", { type: "number", required: true, min: 1, max: 3650, value: KEY_DAYS })],
    act: async ({ name, role, days }) => { made = await request("POST", "/api/v1/keys", { name: name.trim(), role, days: Number(days) }); },
  });
  if (!values) return;
  showOnce(`API key ${values.name.trim()}`, "Shown once: nobody can read it again. A script sends it as a bearer token.", [["Key", made.key]]);
  await load();
}

async function revoke(key, load) {
  const values = await dialog({
    title: `Revoke ${key.name}?`, confirm: "Revoke", danger: true,
    text: "Whatever uses it is refused from its next request on. It cannot be made good again.",
  });
  if (!values) return;
  await request("DELETE", `/api/v1/keys/${encodeURIComponent(key.id)}`);
  notice(`${key.name} is revoked.`);
  await load();
}
