// #/devices/UUID/terminal -> a view. A view is async (main, ...parts) => stop function or nothing.

const routes = [];
let stop = null;
let generation = 0;

export function route(pattern, view, title) { routes.push([pattern, view, title]); }

export function go(path) { location.hash = path; }

export async function show() {
  const mine = ++generation;
  stop?.();
  stop = null;
  const path = decodeURI(location.hash.slice(1)) || "/devices";
  const main = document.getElementById("main");
  for (const [pattern, view, title] of routes) {
    const match = pattern.exec(path);
    if (!match) continue;
    document.title = `${title} · gwmodule`;
    for (const link of document.querySelectorAll("#bar nav a")) {
      const current = path.startsWith(link.getAttribute("href").slice(1));
      link.toggleAttribute("aria-current", current);
      if (current) link.setAttribute("aria-current", "page");
    }
    main.replaceChildren();
    main.className = "";
    let stopView;
    try {
      stopView = await view(main, ...match.slice(1));
    } catch (error) {
      const line = document.createElement("p");
      line.className = "error";
      line.textContent = error.message;
      main.replaceChildren(line);
    }
    if (mine === generation) stop = stopView ?? null;
    else stopView?.();
    return;
  }
  go("/devices");
}
