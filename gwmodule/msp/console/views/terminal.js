import { call, get, may } from "../api.js";
import { ago, busy, choice, copy, dialog, h, notice, replace } from "../dom.js";
import { fullTime, milliseconds, time } from "../format.js";
import { mount } from "../router.js";
import { SolConnection } from "../sol.js";
import { Terminal } from "../terminal.js";
import { BOOTS } from "./device.js";
import { nameOf } from "./devices.js";

// An image from the network wants its address; that is on the device's page.
const WATCHED = [["default", "as always"], ...BOOTS.filter(([key]) => key !== "uefi-https")];
const OPEN_WITHIN = 40000;
// KeyboardEvent.key -> name, for keyboards that lack them and browsers that take them.
const KEYS = {
  Escape: "Esc", Tab: "Tab", Enter: "Enter", Delete: "Del", Insert: "Ins", "Ctrl-C": "Ctrl-C",
  ArrowUp: "↑", ArrowDown: "↓", ArrowLeft: "←", ArrowRight: "→",
  Home: "Home", End: "End", PageUp: "PgUp", PageDown: "PgDn",
  ...Object.fromEntries(Array.from({ length: 12 }, (_, index) => [`F${index + 1}`, `F${index + 1}`])),
};
const PLAIN = { Escape: "\x1b", Tab: "\t", Enter: "\r", "Ctrl-C": "\x03" };
const STATES = { opening: "opening", open: "connected", lost: "reconnecting to the device", closed: "not connected" };

export async function terminalView(main, guid) {
  const device = await get(`/api/v1/devices/${guid}`);
  const name = nameOf(device);
  main.dataset.title = `${name} terminal`;
  const connection = new SolConnection(guid);

  const state = h("span", { class: "pill", "data-state": "closed" }, STATES.closed);
  const holder = h("span", { class: "holder" });
  const hops = ["you – MSP", "MSP – gateway", "gateway – PC"].map((title) => [h("span", { class: "hop" }, title), h("span", { class: "number" }, "–")]);
  const notes = h("ol", { class: "notes", "aria-label": "Session notes", "aria-live": "polite" });
  const screen = h("div", { class: "screen", role: "group", "aria-label": `Serial line of ${name}` });
  const button = (text, act, properties = {}) => h("button", { type: "button", onclick: (event) => busy(event.currentTarget, () => act(event)), ...properties }, text);

  const connect = button("Connect", async () => { connection.connect(); terminal.focus(); }, { class: "primary" });
  const look = button("Watch", async () => connection.connect(), { class: "primary" });
  const watch = button("Reset and watch…", () => resetAndWatch());
  const takeOver = button("Take over", async () => {
    const { holder: who, since } = connection.refused ?? connection.status;
    const text = connection.refused
      ? `${who} has had this serial line open with a tool of his own since ${time(since)}. That connection ends, and he is told who took it over.`
      : `${who} has typed here since ${time(since)} and will only watch from now on.`;
    if (await dialog({ title: `Take over from ${who}?`, text, confirm: "Take over", danger: true })) {
      if (connection.wanted) connection.takeOver();
      else connection.connect("takeover");
    }
    terminal.focus();
  });
  let leaving = false;
  const hangUp = button("Disconnect", async () => { leaving = true; connection.hangUp(); });
  const keys = h("select", { "aria-label": "Send a key", onchange: () => sendKey() },
    h("option", { value: "" }, "Send key…"),
    Object.entries(KEYS).map(([value, text]) => h("option", { value }, text)));
  const keyboard = h("select", { "aria-label": "Function keys", title: "How function keys, Home, Del and the like are sent; try the other one if a BIOS does not react",
    onchange: () => { terminal.setKeys(keyboard.value); terminal.focus(); } },
  [["xterm", "F keys: xterm"], ["vt100+", "F keys: VT100+"]].map(([value, text]) => h("option", { value }, text)));
  const textSize = h("select", { "aria-label": "Text size", onchange: () => { terminal.setTextSize(Number(textSize.value)); terminal.focus(); } },
    h("option", { value: 0 }, "Text: fit"), [10, 12, 14, 16, 20, 24].map((size) => h("option", { value: size }, `Text: ${size}`)));
  const toolbar = h("div", { class: "toolbar", role: "toolbar", "aria-label": "Terminal", inert: true },
    may("technician") ? [connect, watch] : look, takeOver, hangUp, keys, keyboard, textSize,
    button("Copy", async (event) => { await copy(terminal.text(), event.currentTarget); terminal.focus(); }, { title: "The selection, or everything" }),
    button("Download log", async () => download(connection.log(), name)),
    h("span", { class: "hint" }, "Ctrl+Alt+Home leaves the terminal"));

  main.className = "terminal-page";
  mount(main,
    h("div", { class: "heading" }, h("h1", {}, h("a", { href: `#/devices/${guid}` }, name)), state, holder,
      h("span", { class: "hops", "aria-label": "Round trips" }, hops)),
    toolbar, screen, notes);

  let link = "ended";
  draw();
  const terminal = await Terminal.create(screen, {
    onBytes: (bytes) => connection.type(bytes),
    onLeave: toToolbar,
  });
  toolbar.inert = false;
  keyboard.value = terminal.keys;
  textSize.value = terminal.textSize;

  const on = (kind, act) => connection.addEventListener(kind, (event) => act(event.detail));
  on("data", ({ bytes, console: id, offset }) => terminal.write(bytes, () => connection.shown(id, offset)));
  on("mark", (mark) => note(mark.at, mark.text, mark.gap ? "warn" : ""));
  on("readonly", () => notice(connection.status.holder ? `Read-only: held by ${connection.status.holder}. Take over to type.` : "Read-only: take over to type."));
  on("latency", ({ service, gateway, device: last }) => {
    [service, gateway, last].forEach((value, index) => { replace(hops[index][1], milliseconds(value)); });
  });
  on("link", (now) => {
    if (now === "lost" && link !== "lost") note(new Date().toISOString(), "the browser lost the service; attaching again", "warn");
    link = now === "attaching" && link === "lost" ? "lost" : now;
    draw();
  });
  on("status", (status) => {
    if (status.state === "closed" && status.reason) note(new Date().toISOString(), status.reason, "warn");
    draw();
  });

  function draw() {
    const { state: at, writer, holder: who, since, viewers } = connection.status;
    const live = connection.wanted;
    const shown = !live ? "closed" : link === "lost" ? "lost" : link === "attaching" ? "opening" : at;
    state.dataset.state = shown;
    replace(state, live && link === "lost" ? "reconnecting to the MSP" : STATES[shown]);
    const held = (name, at) => [`busy: held by ${name} since ${time(at)} (`, ago(at), ")"];
    const { refused } = connection;
    replace(holder, refused ? (refused.holder ? held(refused.holder, refused.since) : `no room: ${refused.reason}`)
      : !live || !who ? ""
      : !writer ? held(who, since)
      : viewers > 1 ? `you type, ${viewers - 1} watching` : "");
    connect.hidden = look.hidden = live;
    takeOver.hidden = !may("technician") || !(live ? at !== "closed" && !writer && link === "attached" : refused?.holder);
    hangUp.hidden = !(live && writer);
    keys.hidden = !(live && writer);
    if (!live) hops.forEach(([, value]) => replace(value, "–"));
    // What is hidden cannot keep the keyboard's focus.
    if (document.activeElement?.hidden || (leaving && !live)) toToolbar();
    leaving &&= live;
  }

  function toToolbar() { toolbar.querySelector("button:not([hidden])").focus(); }

  function note(at, text, kind) {
    notes.prepend(h("li", { class: kind }, h("time", { title: fullTime(at) }, time(at).slice(11)), h("span", {}, text)));
    while (notes.childElementCount > 50) notes.lastElementChild.remove();
  }

  function sendKey() {
    const wanted = keys.value;
    keys.value = "";
    if (wanted) connection.type(new TextEncoder().encode(PLAIN[wanted] ?? terminal.sequence(wanted)));
    terminal.focus();
  }

  // The console first: a boot says things that nobody repeats.
  async function resetAndWatch() {
    const values = await dialog({
      title: `Reset ${name} and watch?`, confirm: "Reset", danger: true,
      text: "A PC that is on restarts at once, and one that is off is switched on. Whatever is not saved on it is lost.",
      body: [choice("Then boot", "device", WATCHED)],
    });
    if (!values) return;
    const stream = await opened();
    const { result } = await call(guid, "boot.once", { device: values.device, stream });
    note(new Date().toISOString(), `${result.requested_name}: booting ${WATCHED.find(([key]) => key === values.device)[1]}`, "");
    terminal.focus();
  }

  function opened() {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => finish(reject, new Error("The console did not open.")), OPEN_WITHIN);
      const check = () => {
        const { state: at, stream, reason, writer, holder: who } = connection.status;
        if (!connection.wanted) finish(reject, new Error(reason || "The console did not open."));
        else if (at === "open" && !writer && who) finish(reject, new Error(`Held by ${who}: take over first.`));
        else if (at === "open" && stream) finish(resolve, stream);
      };
      const finish = (act, value) => { clearTimeout(timer); connection.removeEventListener("status", check); act(value); };
      connection.addEventListener("status", check);
      if (connection.wanted) check();
      else connection.connect();
    });
  }

  if (connection.known) connection.connect();
  terminal.focus();
  return () => { connection.leave(); terminal.dispose(); };
}

function download(blob, name) {
  const stamp = new Date().toISOString().slice(0, 19).replace(/[:T]/g, "-");
  const url = URL.createObjectURL(blob);
  const link = h("a", { href: url, download: `${name.replace(/[^A-Za-z0-9._-]/g, "_")}-${stamp}.log` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}
