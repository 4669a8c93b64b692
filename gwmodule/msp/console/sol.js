// One browser's end of a console (subprotocol gwmodule.console.1, docs/console.md). It attaches
// again by itself, at the byte it has, until it is told that there is nothing to attach to.

import { redirectionToken, Refused } from "./api.js";

const SUBPROTOCOL = "gwmodule.console.1";
const PING_EVERY = 1000;
// Without a word for so long the connection is dead, whatever its TCP says.
const SILENCE = 8000;
const DELAYS = [200, 500, 1000, 2000, 5000];
// An acknowledgement is worth a message for so many bytes, or after so long.
const ACK_BYTES = 32768;
const ACK_AFTER = 100;
// A paste goes in pieces, so that it can be held back.
const PIECE = 4096;
// 4000 + the service's code (docs/console.md): another attempt would be answered alike.
const FINAL = new Set([1000, 4001, 4009, 4032, 4033, 4034, 4067, 4069, 4070, 4073, 4074]);
const DEVICE_REFUSED = 4073;
const LIMIT = 4037;
// A tool that speaks SOL itself has the line (api/streams.py); the device's own refusals read otherwise.
const HELD = /^busy: held by (.+) since (\S+)$/;
// What a technician may look back at and download.
const MAX_LOG = 16 * 1024 * 1024;
// A line says a few bytes at a time, and an array for each would take ten times their room.
const LOG_BLOCK = 64 * 1024;
const NOWHERE = Object.freeze({ console: "", seat: "", offset: 0, mark: 0 });

export class SolConnection extends EventTarget {
  #guid;
  #socket = null;
  #place = NOWHERE;
  #shown = 0;
  #acknowledged = 0;
  #ackTimer = null;
  #attempt = 0;
  #timer = null;
  #pinger = null;
  #heardAt = 0;
  #pings = new Map();
  #pingNumber = 0;
  #log = [];
  #logEnd = 0;
  #want = "seat";
  #wasAttached = false;
  // Why nobody may attach: {reason, holder, since}, with a holder where a takeover would help.
  refused = null;
  wanted = false;
  status = { state: "closed", writer: false, holder: "", stream: 0, reason: "" };

  constructor(guid) {
    super();
    this.#guid = guid;
    try {
      const kept = JSON.parse(sessionStorage.getItem(this.#key) ?? "{}");
      this.#place = { ...NOWHERE, console: kept.console ?? "", seat: kept.seat ?? "" };
    } catch { /* a new place, then */ }
    this.onOnline = () => { if (this.wanted && !this.#socket) this.#retry(0); };
    addEventListener("online", this.onOnline);
  }

  get #key() { return `gwmodule.console.${this.#guid}`; }

  // A console that this tab had open before it was loaded again.
  get known() { return this.#place.console !== ""; }

  // `want`: "takeover" ends whatever else has the line.
  connect(want = "seat") {
    this.wanted = true;
    this.#want = want;
    this.refused = null;
    this.#attempt = 0;
    this.#retry(0);
  }

  // The service keeps the session for a while.
  leave() {
    this.wanted = false;
    removeEventListener("online", this.onOnline);
    this.#drop();
  }

  hangUp() { this.#say({ type: "hangup" }); }
  takeOver() { this.#say({ type: "takeover" }); }

  type(bytes) {
    for (let start = 0; start < bytes.length; start += PIECE) {
      if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(bytes.subarray(start, start + PIECE));
    }
  }

  // The terminal has drawn everything before `offset` of this console.
  shown(console, offset) {
    if (console !== this.#place.console || offset <= this.#shown) return;
    this.#shown = offset;
    if (this.#shown - this.#acknowledged >= ACK_BYTES) this.#acknowledge();
    else this.#ackTimer ??= setTimeout(() => this.#acknowledge(), ACK_AFTER);
  }

  // What the device said, byte for byte; a line says where bytes may be missing.
  log() {
    const blocks = this.#log.map((block, index) => (index < this.#log.length - 1 ? block : block.subarray(0, this.#logEnd)));
    return new Blob(blocks, { type: "application/octet-stream" });
  }

  #retry(delay) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#attach(), delay);
  }

  async #attach() {
    if (!this.wanted || this.#socket) return;
    this.#link("attaching");
    let token;
    try {
      token = await redirectionToken(this.#guid);
    } catch (error) {
      if (error instanceof Refused && error.status >= 400 && error.status < 500 && error.status !== 429) {
        this.#finish(error.message);
      } else {
        this.#lost();
      }
      return;
    }
    if (!this.wanted || this.#socket) return;
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(`${scheme}//${location.host}/api/v1/amt/sol/${this.#guid}`, [SUBPROTOCOL, token]);
    socket.binaryType = "arraybuffer";
    this.#socket = socket;
    this.#wasAttached = false;
    this.#heardAt = performance.now();
    socket.onopen = () => this.#say({ type: "attach", ...this.#place, want: this.#want });
    socket.onmessage = (event) => { if (socket === this.#socket) this.#hear(event.data); };
    socket.onclose = (event) => { if (socket === this.#socket) this.#closed(event); };
    clearInterval(this.#pinger);
    this.#pinger = setInterval(() => this.#ping(), PING_EVERY);
  }

  #hear(data) {
    this.#heardAt = performance.now();
    if (data instanceof ArrayBuffer) {
      const bytes = new Uint8Array(data);
      this.#place.offset += bytes.length;
      this.#keep(bytes);
      this.#tell("data", { bytes, console: this.#place.console, offset: this.#place.offset });
      return;
    }
    const message = JSON.parse(data);
    switch (message.type) {
      case "attached": this.#attached(message); break;
      case "status":
        this.status = message;
        if (message.seat) this.#remember(message.seat);
        this.#tell("status", message);
        break;
      case "mark":
        this.#place.mark = message.number + 1;
        if (message.gap) this.#keep(new TextEncoder().encode(`\r\n[${message.at} ${message.text}]\r\n`));
        this.#tell("mark", message);
        break;
      case "pong": {
        const sent = this.#pings.get(message.id);
        this.#pings.delete(message.id);
        if (sent !== undefined) {
          this.#tell("latency", { service: (performance.now() - sent) / 1000, gateway: message.gateway, device: message.device });
        }
        break;
      }
      case "readonly": this.#tell("readonly"); break;
    }
  }

  #attached(message) {
    this.#attempt = 0;
    this.#wasAttached = true;
    // Who loses the line to somebody else later does not take it back by himself.
    this.#want = "seat";
    const same = message.console === this.#place.console;
    const missing = same ? message.lost : message.offset;
    if (!same && this.#log.length > 0) this.#note("a new session; output between may be missing", true);
    if (missing > 0) this.#note(`${missing} bytes are no longer kept by the service`, true);
    this.#place = { console: message.console, seat: message.seat, offset: message.offset, mark: message.mark };
    this.#shown = this.#acknowledged = message.offset;
    if (message.seat) this.#remember(message.seat);
    this.#link("attached");
  }

  #note(text, gap) {
    const at = new Date().toISOString();
    if (gap) this.#keep(new TextEncoder().encode(`\r\n[${at} ${text}]\r\n`));
    this.#tell("mark", { at, text, gap });
  }

  #remember(seat) {
    this.#place.seat = seat;
    sessionStorage.setItem(this.#key, JSON.stringify({ console: this.#place.console, seat }));
  }

  #forget() {
    this.#place = NOWHERE;
    sessionStorage.removeItem(this.#key);
  }

  #keep(bytes) {
    for (let start = 0; start < bytes.length;) {
      if (this.#log.length === 0 || this.#logEnd === LOG_BLOCK) {
        this.#log.push(new Uint8Array(LOG_BLOCK));
        this.#logEnd = 0;
        if (this.#log.length > MAX_LOG / LOG_BLOCK) this.#log.shift();
      }
      const part = bytes.subarray(start, start + LOG_BLOCK - this.#logEnd);
      this.#log.at(-1).set(part, this.#logEnd);
      this.#logEnd += part.length;
      start += part.length;
    }
  }

  #closed(event) {
    this.#drop();
    // One who falls behind comes again; where there is no room to come in another attempt finds none.
    const noRoom = event.code === LIMIT && !this.#wasAttached;
    if (noRoom || (event.code === DEVICE_REFUSED && HELD.test(event.reason))) {
      const [, holder = "", since = null] = HELD.exec(event.reason) ?? [];
      this.refused = { reason: event.reason, holder, since };
    }
    // Told that the console has ended: who comes with its id is taken for one who goes on.
    if (FINAL.has(event.code) && this.status.state === "closed") this.#forget();
    if (noRoom || FINAL.has(event.code)) this.#finish(event.reason);
    else if (this.wanted) this.#lost();
  }

  #finish(reason) {
    this.wanted = false;
    const told = this.status.state === "closed" && this.status.reason === reason;
    this.status = { ...this.status, state: "closed", writer: false, stream: 0, reason };
    if (!told) this.#tell("status", this.status);
    this.#link("ended");
  }

  #lost() {
    this.#link("lost");
    this.#retry(DELAYS[Math.min(this.#attempt++, DELAYS.length - 1)]);
  }

  #ping() {
    // Timers of a page in the background run late: only a ping that nobody answered counts.
    const [oldest] = this.#pings.values();
    if (performance.now() - Math.max(this.#heardAt, oldest ?? Infinity) > SILENCE) {
      this.#drop();
      this.#lost();
      return;
    }
    if (this.#pings.size > 10) this.#pings.clear();
    this.#pings.set(++this.#pingNumber, performance.now());
    this.#say({ type: "ping", id: this.#pingNumber });
  }

  #acknowledge() {
    clearTimeout(this.#ackTimer);
    this.#ackTimer = null;
    if (this.#shown > this.#acknowledged) {
      this.#acknowledged = this.#shown;
      this.#say({ type: "ack", offset: this.#shown });
    }
  }

  #drop() {
    clearInterval(this.#pinger);
    clearTimeout(this.#timer);
    clearTimeout(this.#ackTimer);
    this.#ackTimer = null;
    this.#pings.clear();
    const socket = this.#socket;
    this.#socket = null;
    socket?.close();
  }

  #say(message) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }

  #link(state) { this.#tell("link", state); }

  #tell(kind, detail) { this.dispatchEvent(new CustomEvent(kind, { detail })); }
}
