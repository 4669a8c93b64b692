// What a page shows is read again when something happens, and every so often because an event may
// be missed. Where that fails the page says how old it is.

import { events } from "./api.js";
import { replace } from "./dom.js";
import { time } from "./format.js";

// A burst of events is one reading; a list that takes long is read more rarely.
const GATHER = 1000;
const REST = 5;

// Returns a stop function. The view has read the data once before.
export function keepFresh(load, { kinds, every }) {
  let readAt = Date.now();
  let pending = null;
  let reading = false;
  let wait = GATHER;
  let stopped = false;

  async function read() {
    clearTimeout(pending);
    pending = null;
    if (reading) return soon();
    reading = true;
    const began = performance.now();
    try {
      await load();
      readAt = Date.now();
      if (!stopped) stale("");
    } catch (error) {
      if (!stopped) stale(`${error.message} What you see is from ${time(readAt / 1000).slice(11)}.`);
    } finally {
      reading = false;
      wait = Math.max(GATHER, REST * (performance.now() - began));
    }
    return undefined;
  }
  function soon() { if (!stopped) pending ??= setTimeout(read, wait); }

  const stopEvents = events((kind) => { if (kind === "lagged" || kind === "connected" || kinds.includes(kind)) soon(); });
  const clock = setInterval(read, every);
  return () => {
    stopped = true;
    stopEvents();
    clearInterval(clock);
    clearTimeout(pending);
    stale("");
  };
}

function stale(text) {
  const line = document.getElementById("stale");
  if (line.textContent !== text) replace(line, text);
}
