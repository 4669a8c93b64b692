import { askOtherTabs, claims, may, sessionEnded, signedIn, signOut, whenSignedOut } from "./api.js";
import { h, replace } from "./dom.js";
import { leave, newMain, route, show } from "./router.js";
import { auditView } from "./views/audit.js";
import { candidatesView } from "./views/candidates.js";
import { deviceView } from "./views/device.js";
import { devicesView } from "./views/devices.js";
import { gatewaysView } from "./views/gateways.js";
import { signInView } from "./views/sign_in.js";
import { terminalView } from "./views/terminal.js";
import { usersView } from "./views/users.js";

const GUID = "([0-9a-f-]{36})";
route(/^\/devices\/?$/, devicesView, "Devices");
route(/^\/devices\/found$/, candidatesView, "Found, not identified yet");
route(new RegExp(`^/devices/${GUID}/terminal$`), terminalView, "Terminal");
route(new RegExp(`^/devices/${GUID}(?:/([a-z]+))?$`), deviceView, "Device");
route(/^\/gateways$/, gatewaysView, "Gateways");
route(/^\/users$/, usersView, "Users");
route(/^\/audit$/, auditView, "Audit");

function start(said = "") {
  const bar = document.getElementById("bar");
  bar.hidden = !signedIn();
  if (!signedIn()) {
    leave();
    document.title = "Sign in · gwmodule";
    document.querySelectorAll("dialog").forEach((dialog) => dialog.close());
    signInView(newMain(), start, said);
    return;
  }
  const { sub, role, tenant } = claims();
  const link = (path, text) => h("a", { href: `#${path}` }, text);
  replace(bar,
    h("strong", {}, "gwmodule"),
    h("nav", { "aria-label": "Pages" }, link("/devices", "Devices"), link("/gateways", "Gateways"),
      may("admin") && link("/users", "Users"), may("technician") && link("/audit", "Audit")),
    h("span", { class: "who", title: `tenant ${tenant}` }, `${sub} · ${role}`),
    h("button", { type: "button", class: "plain", onclick: signOut }, "Sign out"));
  show();
}

whenSignedOut(start);
addEventListener("hashchange", () => { if (signedIn()) show(); else if (!document.getElementById("bar").hidden) sessionEnded(); });
if (!signedIn()) await askOtherTabs();
start();
