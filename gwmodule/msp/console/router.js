// #/devices/UUID/terminal -> a view. A view is async (main, ...parts) => stop function or nothing.
// Each gets a <main> of its own and mounts it when it has something to show; one that was left
// meanwhile shows it to nobody.

import { h, replace } from "./dom.js";

const routes = [];
let stop = null;
let generation = 0;

export function route(pattern, view, title) { routes.push([pattern, view, title]); }

export function go(path) { location.hash = path; }

// Ends the view that is shown, and whatever it has open.
export function leave() {
  generation++;
  stop?.();
  stop = null;
}

export function mount(main, ...children) {
  replace(main, ...children);
  main.mount();
}

// For views that have no route.
export function newMain() {
  const mine = generation;
  const main = h("main", { id: "main", tabindex: -1 });
  main.mount = () => {
    const shown = document.getElementById("main");
    if (mine === generation && shown !== main) shown.replaceWith(main);
  };
  return main;
}

export async function show() {
  leave();
  const mine = generation;
  const path = decoded(location.hash.slice(1)) || "/devices";
  const [pattern, view, title] = routes.find(([wanted]) => wanted.test(path)) ?? [];
  if (!view) {
    go("/devices");
    return;
  }
  for (const link of document.querySelectorAll("#bar nav a")) {
    if (path.startsWith(link.getAttribute("href").slice(1))) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const onTab = document.activeElement?.getAttribute("role") === "tab";
  document.getElementById("main").setAttribute("aria-busy", "true");
  const main = newMain();
  let stopView = null;
  try {
    stopView = await view(main, ...pattern.exec(path).slice(1));
  } catch (error) {
    main.className = "";
    mount(main, h("div", { class: "heading" }, h("h1", {}, title)), problem(error, show));
  }
  if (mine !== generation) {
    stopView?.();
    return;
  }
  stop = stopView ?? null;
  document.title = `${main.dataset.title ?? title} · gwmodule`;
  if (!main.contains(document.activeElement)) {
    // The keyboard goes on in what is new, and a screen reader reads its name.
    const next = (onTab && main.querySelector("[role=tab][aria-selected=true]")) || main.querySelector("h1");
    if (next.tabIndex < 0) next.tabIndex = -1;
    next.focus();
  }
}

export function problem(error, again) {
  return h("div", { class: "problem", role: "alert" }, h("p", { class: "error" }, error.message),
    h("button", { type: "button", onclick: again }, "Try again"));
}

function decoded(path) {
  try { return decodeURI(path); } catch { return ""; }
}
