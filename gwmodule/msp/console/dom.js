// Elements out of names, properties and children. Text from outside becomes text nodes, never
// markup: a host name is whatever a stranger told a DHCP server.

import { age, fullTime, time } from "./format.js";

export function h(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "class") element.className = value;
    else if (key === "value") element.value = value;
    else element.setAttribute(key, value === true ? "" : visible(value));
  }
  element.append(...shown(children));
  return element;
}

export function replace(element, ...children) { element.replaceChildren(...shown(children)); }

function shown(children) {
  return children.flat(Infinity)
    .filter((child) => child !== null && child !== undefined && child !== false && child !== "")
    .map((child) => (child instanceof Node ? child : visible(child)));
}

// What is not seen, or turns the text around it, is shown by its code.
export function visible(text) {
  return String(text).replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu,
    (character) => `\\u{${character.codePointAt(0).toString(16)}}`);
}

// A moment in the technician's zone; the pointer gets all of it.
export function moment(value) {
  const text = time(value);
  return text && h("time", { title: fullTime(value) }, text);
}

// How long ago; it goes on by itself.
export function ago(iso) { return h("time", { datetime: iso, title: fullTime(iso), "data-age": true }, age(iso)); }

setInterval(() => {
  for (const element of document.querySelectorAll("time[data-age]")) {
    const text = age(element.dateTime);
    if (element.textContent !== text) element.textContent = text;
  }
}, 5000);

// columns: [{title, cell(row) -> Node|string, class?}]
export function table(columns, rows, { empty = "Nothing here." } = {}) {
  if (rows.length === 0) return h("p", { class: "empty" }, empty);
  return frame(columns.map((column) => heading(column)), h("tbody", {}, rows.map((row) => line(columns, row))));
}

// A table that is drawn again and again. A row stays the same element while it says the same, so
// that focus, selection and scrolling survive. Columns with `sort(row)` can be sorted by.
// key(row) names a row; also(row) is what it says besides its data.
export function liveTable(columns, { key, also = () => "", limit = Infinity }) {
  const body = h("tbody");
  const empty = h("div", { class: "empty", hidden: true });
  let rows = [];
  let order = null;
  let lines = new Map();
  const headings = columns.map((column) => heading(column, column.sort && (() => {
    order = { column, down: order?.column === column && !order.down };
    columns.forEach((other, index) => {
      if (other === column) headings[index].setAttribute("aria-sort", order.down ? "descending" : "ascending");
      else headings[index].removeAttribute("aria-sort");
    });
    draw();
  })));
  const whole = frame(headings, body);

  function draw() {
    const focused = document.activeElement;
    const before = lines;
    lines = new Map();
    for (const row of (order ? sorted(rows, order) : rows).slice(0, limit)) {
      const said = JSON.stringify(row) + also(row);
      const old = before.get(key(row));
      before.delete(key(row));
      const kept = old?.said === said ? old : { said, line: line(columns, row) };
      if (old && old !== kept) {
        const place = focusable(old.line).indexOf(focused);
        old.line.replaceWith(kept.line);
        focusable(kept.line)[place]?.focus({ preventScroll: true });
      }
      lines.set(key(row), kept);
    }
    for (const { line: gone } of before.values()) gone.remove();
    let next = body.firstElementChild;
    for (const { line: wanted } of lines.values()) {
      if (wanted === next) next = next.nextElementSibling;
      else body.insertBefore(wanted, next);
    }
    // Who is moved loses the focus.
    if (focused?.isConnected && document.activeElement === document.body) focused.focus({ preventScroll: true });
  }

  return {
    element: h("div", {}, whole, empty),
    update(found, nothing = "Nothing here.") {
      rows = found;
      whole.hidden = rows.length === 0;
      empty.hidden = !whole.hidden;
      if (whole.hidden) replace(empty, nothing);
      draw();
    },
  };
}

const collator = new Intl.Collator(undefined, { numeric: true });
function sorted(rows, { column, down }) {
  const found = [...rows].sort((a, b) => collator.compare(column.sort(a) ?? "", column.sort(b) ?? ""));
  return down ? found.reverse() : found;
}

const focusable = (element) => [...element.querySelectorAll("a, button")];

function frame(headings, body) {
  return h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, headings)), body));
}

function heading(column, sort) {
  return h("th", { scope: "col", class: column.class }, sort
    ? h("button", { type: "button", class: "sort", onclick: sort }, column.title)
    : column.hidden ? h("span", { class: "unseen" }, column.title) : column.title);
}

function line(columns, row) {
  return h("tr", {}, columns.map((column) => {
    const cell = h("td", { class: column.class, "data-title": column.hidden ? null : column.title }, column.cell(row));
    if (!cell.hasChildNodes()) cell.classList.add("none");
    return cell;
  }));
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
  [...notices.children].find((other) => other.firstElementChild.textContent === visible(text))?.remove();
  notices.append(line);
  while (notices.childElementCount > 4) notices.firstElementChild.remove();
  if (kind !== "error") setTimeout(() => line.remove(), 6000);
}

// Runs `act` once at a time; a refusal becomes a notice, or what `refused` makes of it. The button is not disabled, because that
// would take the keyboard's focus away.
export async function busy(button, act, refused = (error) => notice(error.message, "error")) {
  if (button.hasAttribute("aria-busy")) return undefined;
  button.setAttribute("aria-busy", "true");
  button.setAttribute("aria-disabled", "true");
  try {
    return await act();
  } catch (error) {
    refused(error);
    return undefined;
  } finally {
    button.removeAttribute("aria-busy");
    button.removeAttribute("aria-disabled");
  }
}

// Resolves to the form's values, or null when it was left. With `act(values)` it stays open until
// that has been done, and says why it was not.
export function dialog({ title, text = "", body = [], confirm = "OK", danger = false, act = null }) {
  return new Promise((resolve) => {
    const read = () => Object.fromEntries(new FormData(form));
    const submit = h("button", { type: "submit", value: "ok", class: danger ? "danger" : "primary" }, confirm);
    const refusal = act && h("p", { class: "error", role: "alert" });
    const form = h("form", {
      method: "dialog",
      onsubmit: act && ((event) => {
        event.preventDefault();
        replace(refusal);
        busy(submit, async () => { await act(read()); box.close("ok"); }, (error) => replace(refusal, error.message));
      }),
    },
    h("h2", {}, title), text && h("p", { id: "effect" }, text), body, refusal,
    h("menu", {}, h("button", { type: "button", onclick: () => box.close() }, "Cancel"), submit));
    const box = h("dialog", { "aria-label": title, "aria-describedby": text ? "effect" : null }, form);
    box.addEventListener("close", () => {
      const values = box.returnValue === "ok" ? read() : null;
      box.remove();
      resolve(values);
    });
    document.body.append(box);
    box.showModal();
  });
}

// For tokens that are shown once.
export function showOnce(title, text, pairs) {
  const box = h("dialog", { "aria-label": title },
    h("form", { method: "dialog" }, h("h2", {}, title), h("p", {}, text),
      pairs.map(([name, value]) => {
        const code = h("code", {}, value);
        return h("div", { class: "once" }, h("span", {}, name), code,
          h("button", { type: "button", onclick: (event) => copy(value, event.currentTarget, code) },
            "Copy", h("span", { class: "unseen" }, ` the ${name.toLowerCase()}`)));
      }),
      h("menu", {}, h("button", { class: "primary", value: "ok" }, "Done"))));
  box.addEventListener("close", () => box.remove());
  document.body.append(box);
  box.showModal();
}

export async function copy(text, button, source) {
  button.before ??= [...button.childNodes];
  try {
    await navigator.clipboard.writeText(text);
    replace(button, "Copied");
  } catch {
    // Only pages of https or of this machine may; what is selected can be copied by hand.
    if (!source) throw new Error("This browser does not let the page use the clipboard.");
    getSelection().selectAllChildren(source);
    replace(button, "Press Ctrl+C");
  }
  setTimeout(() => replace(button, button.before), 2000);
}

export function field(label, name, properties = {}) {
  return h("label", {}, h("span", {}, label), h("input", { name, autocomplete: "off", ...properties }));
}

export function tick(label, name, properties = {}) {
  return h("label", { class: "tick" }, h("input", { type: "checkbox", name, ...properties }), h("span", {}, label));
}

export function choice(label, name, options, value = "") {
  return h("label", {}, h("span", {}, label), h("select", { name },
    options.map(([key, text]) => h("option", { value: key, selected: key === value }, text))));
}

// Pages that are parts of one: [{path, text, selected}]
export function tabs(parts) {
  return h("div", { role: "tablist", class: "tabs", onkeydown: arrowKeys }, parts.map(({ path, text, selected }) =>
    h("a", { role: "tab", href: `#${path}`, "aria-selected": String(selected), tabindex: selected ? 0 : -1 }, text)));
}

function arrowKeys(event) {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step) return;
  const all = [...event.currentTarget.children];
  all[(all.indexOf(document.activeElement) + step + all.length) % all.length].focus();
}
