// The service's API. The token lives in this browser's tabs only, until they are closed, and goes into
// a header, never into a URL.

const KEY = "gwmodule.token";

export class Refused extends Error {
  constructor(status, error, description) {
    super(description || error || `status ${status}`);
    this.status = status;
    this.error = error;
  }
}

const ENDED = "Your session has ended. Sign in again to go on where you were.";

let onSignedOut = () => {};
export function whenSignedOut(act) { onSignedOut = act; }

export function signedIn() { return claims() !== null; }

// {sub, role, tenant, exp}: for what to show; what is allowed the service decides.
export function claims() {
  const token = sessionStorage.getItem(KEY);
  if (!token) return null;
  try {
    const text = atob(token.split(".")[1].replace(/-/g, "+").replace(/_/g, "/"));
    const found = JSON.parse(new TextDecoder().decode(Uint8Array.from(text, (c) => c.charCodeAt(0))));
    return found.exp * 1000 > Date.now() ? found : null;
  } catch {
    return null;
  }
}

export function may(role) {
  const order = ["viewer", "technician", "admin"];
  return order.indexOf(claims()?.role) >= order.indexOf(role);
}

export async function signIn(username, password) {
  const answer = await request("POST", "/api/v1/authorize", { username, password });
  sessionStorage.setItem(KEY, answer.token);
}

// Tabs that are open together share the login: one that is opened asks the others for it.
const tabs = new BroadcastChannel("gwmodule");
const REPLY = 150;
tabs.addEventListener("message", ({ data }) => {
  if (data.wanted && signedIn()) tabs.postMessage({ token: sessionStorage.getItem(KEY) });
  if (data.signedOut && sessionStorage.getItem(KEY)) forget();
});

export function askOtherTabs() {
  return new Promise((resolve) => {
    const over = AbortSignal.timeout(REPLY);
    over.addEventListener("abort", resolve);
    tabs.addEventListener("message", ({ data }) => {
      if (!data.token) return;
      sessionStorage.setItem(KEY, data.token);
      resolve();
    }, { signal: over });
    tabs.postMessage({ wanted: true });
  });
}

export function signOut() {
  tabs.postMessage({ signedOut: true });
  forget();
}

// Nothing stays in the tab, not even the seats at serial lines.
function forget() {
  sessionStorage.clear();
  onSignedOut("");
}

// The same person may come back to his seats.
export function sessionEnded() {
  sessionStorage.removeItem(KEY);
  onSignedOut(ENDED);
}

export async function request(method, path, body, headers = {}) {
  const token = sessionStorage.getItem(KEY);
  let response;
  try {
    response = await fetch(path, {
      method,
      headers: {
        ...(token ? { Authorization: `Bearer ${token}` } : {}),
        ...(body === undefined ? {} : { "Content-Type": "application/json" }),
        ...headers,
      },
      body: body === undefined ? undefined : JSON.stringify(body),
      cache: "no-store",
      credentials: "omit",
      redirect: "error",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "UNREACHABLE", "The service does not answer.");
  }
  const text = await response.text();
  let answer = null;
  try { answer = text ? JSON.parse(text) : null; } catch { /* told by the status */ }
  // Of several requests the first one tells.
  if (response.status === 401 && token && token === sessionStorage.getItem(KEY)) sessionEnded();
  if (!response.ok) throw new Refused(response.status, answer?.error, answer?.errorDescription);
  return answer;
}

export const get = (path) => request("GET", path);

// One AMT function, with the login that is stored for the device. Never repeated by itself: the key
// makes the service answer a doubled request once.
export async function call(guid, name, args = {}, deadline = 60) {
  return request("POST", `/api/v1/devices/${guid}/call`, { function: name, arguments: args, deadline },
    { "Idempotency-Key": crypto.randomUUID?.() ?? String(Math.random()) });
}

export async function redirectionToken(guid) {
  return (await get(`/api/v1/authorize/redirection/${guid}`)).token;
}

// Server-sent events, read with fetch because EventSource sends no headers. "connected" is told each
// time they begin, because what happened before was not. Returns a stop function.
export function events(onEvent) {
  const control = new AbortController();
  (async () => {
    for (let wait = 1000; !control.signal.aborted; wait = Math.min(wait * 2, 30000)) {
      try {
        const response = await fetch("/api/v1/events", {
          headers: { Authorization: `Bearer ${sessionStorage.getItem(KEY)}`, Accept: "text/event-stream" },
          signal: control.signal, cache: "no-store", credentials: "omit",
        });
        if (response.ok) {
          onEvent("connected", {});
          await read(response.body.pipeThrough(new TextDecoderStream()).getReader(), onEvent);
          wait = 1000;
        } else if (response.status < 500) return;
      } catch { /* the next attempt tells */ }
      if (!control.signal.aborted) await new Promise((resolve) => { setTimeout(resolve, wait); });
    }
  })();
  return () => control.abort();
}

async function read(reader, onEvent) {
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    buffer += value.replace(/\r/g, "");
    for (let end = buffer.indexOf("\n\n"); end >= 0; end = buffer.indexOf("\n\n")) {
      const lines = buffer.slice(0, end).split("\n");
      buffer = buffer.slice(end + 2);
      const kind = lines.find((line) => line.startsWith("event:"))?.slice(6).trim();
      const data = lines.filter((line) => line.startsWith("data:")).map((line) => line.slice(5)).join("\n");
      try { if (kind) onEvent(kind, JSON.parse(data)); } catch { /* not for us */ }
    }
    if (buffer.length > 1_000_000) return;
  }
}
