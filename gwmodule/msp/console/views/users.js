import { claims, get, request } from "../api.js";
import { busy, choice, dialog, field, h, liveTable } from "../dom.js";
import { mount } from "../router.js";

const ROLES = [["viewer", "viewer: look"], ["technician", "technician: look and repair"], ["admin", "admin: everything"]];

export async function usersView(main) {
  const load = async () => list.update(await get("/api/v1/users"));
  const list = liveTable(columns(() => load()), { key: (u) => u.name });
  await load();
  mount(main,
    h("div", { class: "heading" }, h("h1", {}, "Users"),
      h("button", { type: "button", class: "primary", onclick: (event) => busy(event.target, () => add(load)) }, "Add a user…")),
    list.element);
}

const columns = (load) => [
  { title: "User", class: "first", cell: (u) => h("span", { class: "name", title: u.name }, u.name), sort: (u) => u.name },
  { title: "Role", class: "bare", cell: (u) => u.role, sort: (u) => u.role },
  { title: "State", class: "bare", cell: (u) => (u.disabled ? h("span", { class: "badge off" }, "disabled") : "active") },
  { title: "Actions", hidden: true, class: "end", cell: (u) => [
    h("button", { type: "button", class: "plain", "aria-label": `Change ${u.name}`, onclick: (event) => busy(event.target, () => change(u, load)) }, "Change"),
    u.name !== claims().sub &&
      h("button", { type: "button", class: "plain danger", "aria-label": `Remove ${u.name}`, onclick: (event) => busy(event.target, () => remove(u, load)) }, "Remove")] },
];

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
  const values = await dialog({ title: `Remove ${user.name}?`, confirm: "Remove", danger: true, text: "Whoever uses this name is signed out at the next click and cannot sign in again. What it did stays in the audit." });
  if (!values) return;
  await request("DELETE", `/api/v1/users/${encodeURIComponent(user.name)}`);
  await load();
}
