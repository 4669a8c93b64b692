// xterm.js under a Content-Security-Policy without inline styles, sized so that a BIOS's 80 columns
// are always whole.

const MIN_COLUMNS = 80;
const FONT_SIZES = [15, 14, 13, 12, 11, 10, 9, 8, 7, 6];
const SCROLLBACK = 20000;
// What keys send. VT100+, which firmware calls "VT-UTF8" or "PC ANSI" too, is ESC and one character
// where xterm has a sequence.
const XTERM = {
  F1: "\x1bOP", F2: "\x1bOQ", F3: "\x1bOR", F4: "\x1bOS", F5: "\x1b[15~", F6: "\x1b[17~",
  F7: "\x1b[18~", F8: "\x1b[19~", F9: "\x1b[20~", F10: "\x1b[21~", F11: "\x1b[23~", F12: "\x1b[24~",
  Insert: "\x1b[2~", Delete: "\x1b[3~", Home: "\x1b[H", End: "\x1b[F", PageUp: "\x1b[5~", PageDown: "\x1b[6~",
};
const VT100_PLUS = {
  F1: "\x1b1", F2: "\x1b2", F3: "\x1b3", F4: "\x1b4", F5: "\x1b5", F6: "\x1b6",
  F7: "\x1b7", F8: "\x1b8", F9: "\x1b9", F10: "\x1b0", F11: "\x1b!", F12: "\x1b@",
  Insert: "\x1b+", Delete: "\x1b-", Home: "\x1bh", End: "\x1bk", PageUp: "\x1b?", PageDown: "\x1b/",
};
const ARROWS = { ArrowUp: "A", ArrowDown: "B", ArrowRight: "C", ArrowLeft: "D" };

export class Terminal {
  static async create(container, { onBytes, onLeave }) {
    const [{ Terminal: Xterm }, { FitAddon }] = await Promise.all([
      import("/console/lib/xterm.mjs"), import("/console/lib/addon-fit.mjs"),
    ]).catch(() => { throw new Error("The terminal did not load. A service that lacks it gets it by npm ci --omit=dev in its gwmodule/msp/console and a restart."); });
    return new Terminal(new Xterm({
      documentOverride: documentWithoutInlineStyles(),
      cursorBlink: !matchMedia("(prefers-reduced-motion: reduce)").matches,
      fontFamily: getComputedStyle(document.documentElement).getPropertyValue("--mono").trim(),
      fontSize: FONT_SIZES[0],
      scrollback: SCROLLBACK,
      // The device's bytes set no titles and reach no clipboard.
      allowProposedApi: false,
      screenReaderMode: false,
      theme: THEME,
    }), new FitAddon(), container, onBytes, onLeave);
  }

  constructor(xterm, fit, container, onBytes, onLeave) {
    this.xterm = xterm;
    this.keys = localStorage.getItem("gwmodule.keys") ?? "xterm";
    this.textSize = Number(localStorage.getItem("gwmodule.textSize") ?? 0);
    this.fitAddon = fit;
    xterm.loadAddon(fit);
    // The scrollbar's rules are made with the page's own document, whatever is overridden.
    document.createElement = createElement;
    try {
      xterm.open(container);
    } finally {
      delete document.createElement;
    }
    const encoder = new TextEncoder();
    xterm.onData((text) => onBytes(encoder.encode(text)));
    xterm.onBinary((text) => onBytes(Uint8Array.from(text, (c) => c.charCodeAt(0))));
    xterm.attachCustomKeyEventHandler((event) => this.#key(event, onBytes, onLeave));
    this.observer = new ResizeObserver(() => this.fit());
    this.observer.observe(container);
    this.fit();
  }

  write(bytes, drawn) { this.xterm.write(bytes, drawn); }
  focus() { this.xterm.focus(); }

  setKeys(kind) { this.keys = localStorage["gwmodule.keys"] = kind; }

  // In pixels; 0: the largest at which 80 columns fit.
  setTextSize(size) {
    this.textSize = localStorage["gwmodule.textSize"] = size;
    this.fit();
  }

  // The selection, or all that is kept.
  text() {
    if (this.xterm.hasSelection()) return this.xterm.getSelection();
    const buffer = this.xterm.buffer.active;
    const lines = [];
    for (let y = 0; y < buffer.length; y++) {
      const line = buffer.getLine(y);
      const text = line.translateToString(true);
      if (line.isWrapped && lines.length) lines[lines.length - 1] += text;
      else lines.push(text);
    }
    return lines.join("\n").trimEnd();
  }

  fit() {
    const sizes = this.textSize ? [this.textSize] : FONT_SIZES;
    for (const size of sizes) {
      this.xterm.options.fontSize = size;
      const found = this.fitAddon.proposeDimensions();
      if (!found || Number.isNaN(found.cols)) return;
      if (found.cols >= MIN_COLUMNS || size === sizes.at(-1)) {
        this.xterm.resize(Math.max(found.cols, MIN_COLUMNS), Math.max(found.rows, 5));
        return;
      }
    }
  }

  dispose() {
    this.observer.disconnect();
    this.xterm.dispose();
  }

  // What the key of this name sends (KeyboardEvent.key); undefined for keys that are text.
  sequence(key) {
    if (key in ARROWS) return `\x1b${this.xterm.modes.applicationCursorKeysMode ? "O" : "["}${ARROWS[key]}`;
    return (this.keys === "vt100+" ? VT100_PLUS : XTERM)[key];
  }

  #key(event, onBytes, onLeave) {
    // As remote desktops have it: the way out for those who use no mouse.
    if (event.ctrlKey && event.altKey && event.key === "Home") {
      if (event.type === "keydown") onLeave();
      event.preventDefault();
      return false;
    }
    if (event.ctrlKey && event.shiftKey && event.code === "KeyC") return false;
    if (this.keys === "vt100+" && event.key in VT100_PLUS && !event.ctrlKey && !event.altKey && !event.shiftKey) {
      if (event.type === "keydown") onBytes(new TextEncoder().encode(VT100_PLUS[event.key]));
      event.preventDefault();
      return false;
    }
    return true;
  }
}

const THEME = {
  background: "#11151a", foreground: "#d6dbe1", cursor: "#d6dbe1", selectionBackground: "#3b5b80",
  black: "#1b2027", red: "#e06c60", green: "#7fb76a", yellow: "#d9b35b", blue: "#5f9bd8",
  magenta: "#b784c9", cyan: "#5fb8b8", white: "#c6ccd3", brightBlack: "#6b7684", brightRed: "#f08a7e",
  brightGreen: "#9bd285", brightYellow: "#f0cd79", brightBlue: "#85b8ee", brightMagenta: "#d0a3e0",
  brightCyan: "#80d3d3", brightWhite: "#f2f5f8",
};

// xterm.js writes its rules into <style> elements, which the policy refuses. Here they become
// adopted style sheets, which it allows because no markup can make them.
function documentWithoutInlineStyles() {
  return new Proxy(document, {
    get(target, name) {
      if (name === "createElement") return createElement;
      const value = target[name];
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
}

function createElement(tag, ...rest) {
  if (tag === "style") return adoptedStyle();
  const element = Document.prototype.createElement.call(document, tag, ...rest);
  if (tag === "span") element.setAttribute = setAttribute;
  return element;
}

// The colours of a cell come as an attribute, which is inline; through the object model they may.
function setAttribute(name, value) {
  if (name === "style") this.style.cssText = value;
  else Element.prototype.setAttribute.call(this, name, value);
}

function adoptedStyle() {
  const sheet = new CSSStyleSheet();
  document.adoptedStyleSheets = [...document.adoptedStyleSheets, sheet];
  const element = Document.prototype.createElement.call(document, "span");
  element.hidden = true;
  let text = "";
  Object.defineProperty(element, "textContent", {
    get: () => text,
    set: (rules) => { text = rules; sheet.replaceSync(rules); },
  });
  element.remove = () => {
    document.adoptedStyleSheets = document.adoptedStyleSheets.filter((other) => other !== sheet);
    Element.prototype.remove.call(element);
  };
  return element;
}
