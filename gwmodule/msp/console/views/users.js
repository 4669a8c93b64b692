import { claims, get, request } from "../api.js";
import { busy, choice, dialog, field, h, replace, table } from "../dom.js";

const ROLES = [["viewer", "viewer: look"], ["technician", "technician: look and repair"], ["admin", "admin: everything"]];

export async function usersView(main) {
  const list = h("div");
  const load = async () => replace(list, table(columns(load), await get("/api/v1/users")));
  replace(main,
    h("div", { class: "heading" }, h("h1", {}, "Users"),
      h("button", { type: "button", class: "primary", onclick: (event) => busy(event.target, () => add(load)) }, "Add a user…")),
    list);
  await load();
}

const columns = (load) => [
  { title: "User", cell: (u) => h("span", { class: "name" }, u.name) },
  { title: "Role", cell: (u) => u.role },
  { title: "State", cell: (u) => (u.disabled ? h("span", { class: "badge off" }, "disabled") : "active") },
  { title: "", class: "end", cell: (u) => [
    h("button", { type: "button", class: "plain", onclick: (event) => busy(event.target, () => change(u, load)) }, "Change"),
    u.name !== claims().sub &&
      h("button", { type: "button", class: "plain danger", onclick: (event) => busy(event.target, () => remove(u, load)) }, "Remove")] },
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
  const values = await dialog({ title: `Remove ${user.name}?`, confirm: "Remove", danger: true });
  if (!values) return;
  await request("DELETE", `/api/v1/users/${encodeURIComponent(user.name)}`);
  await load();
}
