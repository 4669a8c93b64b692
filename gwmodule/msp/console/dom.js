// Elements out of names, properties and children. Text from outside becomes text nodes, never
// markup: a host name is whatever a stranger told a DHCP server.

export function h(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "class") element.className = value;
    else if (key === "value") element.value = value;
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function replace(element, ...children) {
  element.replaceChildren(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
}

// columns: [{title, cell(row) -> Node|string, class?}]
export function table(columns, rows, { empty = "Nothing here.", caption = "" } = {}) {
  if (rows.length === 0) return h("p", { class: "empty" }, empty);
  return h("div", { class: "scroll" },
    h("table", {},
      caption && h("caption", {}, caption),
      h("thead", {}, h("tr", {}, columns.map((column) => h("th", { scope: "col", class: column.class }, column.title)))),
      h("tbody", {}, rows.map((row) => h("tr", {}, columns.map((column) =>
        h("td", { class: column.class, "data-title": column.title }, column.cell(row) ?? "–")))))));
}

// [[name, value]]; what is not known is left out.
export function facts(pairs) {
  return h("dl", { class: "facts" }, pairs
    .filter(([, value]) => value !== null && value !== undefined && value !== "")
    .map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}

export function notice(text, kind = "info") {
  const line = h("div", { class: `notice ${kind}` }, h("span", {}, text),
    h("button", { type: "button", class: "plain", "aria-label": "Dismiss", onclick: () => line.remove() }, "×"));
  const notices = document.getElementById("notices");
  [...notices.children].find((other) => other.firstElementChild.textContent === text)?.remove();
  notices.append(line);
  while (notices.childElementCount > 4) notices.firstElementChild.remove();
  if (kind !== "error") setTimeout(() => line.remove(), 6000);
}

// Runs `act` with the button disabled; a refusal becomes a notice.
export async function busy(button, act) {
  button.disabled = true;
  button.setAttribute("aria-busy", "true");
  try {
    return await act();
  } catch (error) {
    notice(error.message, "error");
    return undefined;
  } finally {
    button.disabled = false;
    button.removeAttribute("aria-busy");
  }
}

// Resolves to the form's values, or null when it was left.
export function dialog({ title, text = "", body = [], confirm = "OK", danger = false }) {
  return new Promise((resolve) => {
    const form = h("form", { method: "dialog" },
      h("h2", {}, title), text && h("p", {}, text), body,
      h("menu", {},
        h("button", { type: "button", onclick: () => box.close() }, "Cancel"),
        h("button", { type: "submit", value: "ok", class: danger ? "danger" : "primary" }, confirm)));
    const box = h("dialog", { "aria-label": title }, form);
    box.addEventListener("close", () => {
      const values = box.returnValue === "ok" ? Object.fromEntries(new FormData(form)) : null;
      box.remove();
      resolve(values);
    });
    document.body.append(box);
    box.showModal();
  });
}

// For passwords and tokens that are shown once.
export function showOnce(title, text, pairs) {
  const box = h("dialog", { "aria-label": title },
    h("form", { method: "dialog" }, h("h2", {}, title), h("p", {}, text),
      pairs.map(([name, value]) => h("div", { class: "once" }, h("span", {}, name),
        h("code", {}, value),
        h("button", { type: "button", onclick: (event) => copy(value, event.target) }, "Copy"))),
      h("menu", {}, h("button", { class: "primary", value: "ok" }, "Done"))));
  box.addEventListener("close", () => box.remove());
  document.body.append(box);
  box.showModal();
}

export async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
    if (button) {
      const before = button.textContent;
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = before; }, 1500);
    }
  } catch {
    notice("The browser lets only pages of https or this machine use the clipboard.", "error");
  }
}

export function field(label, name, properties = {}) {
  return h("label", {}, h("span", {}, label), h("input", { name, autocomplete: "off", ...properties }));
}

export function choice(label, name, options, value = "") {
  return h("label", {}, h("span", {}, label), h("select", { name },
    options.map(([key, text]) => h("option", { value: key, selected: key === value }, text))));
}
