// Talking with the server: one request at a time in a few lanes, tried again where that helps, and every failure in
// words that say what to do. The key for the server lives in this module's memory and nowhere else.

const LANES = 3, MOST_TRIES = 8, LONGEST_WAIT_S = 60;

let key = "";
let asking = null;
let wanted = () => Promise.resolve(null);

// ``ask`` gives a promise of a key, or of null where there is none to be had.
export function whenKeyIsWanted(ask) {
  wanted = ask;
}

export class Trouble extends Error {
  constructor(message, { kind = "", waitS = null } = {}) {
    super(message);
    this.kind = kind;
    this.waitS = waitS;
  }
}

const running = new Set();
const waiting = [];

// Run ``work`` when a lane is free, in the order of asking.
export function inTurn(work) {
  return new Promise((resolve, reject) => {
    waiting.push(() => work().then(resolve, reject));
    next();
  });
}

function next() {
  while (running.size < LANES && waiting.length) {
    const task = waiting.shift()();
    running.add(task);
    task.finally(() => { running.delete(task); next(); });
  }
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal?.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); }, { once: true });
  });
}

async function keyFromReader(used) {
  if (used !== key) return key; // another request has asked meanwhile
  asking ??= wanted(used !== "").finally(() => { asking = null; });
  const given = await asking;
  if (given === null) throw new Trouble("This server wants a key, and none was given.", { kind: "key" });
  key = given;
  return key;
}

// The answer of the server as a Response; ``tell`` hears what is waited for.
//
// Tried again: a server that is busy, after as long as it says, and longer each time; one that cannot be reached, after
// 1, 2, 4 ... seconds; one that wants a key, once there is one.
export async function call(path, { body, accept = "application/json", signal, tell = () => {} } = {}) {
  for (let attempt = 1; ; attempt++) {
    const headers = { Accept: accept };
    const used = key;
    if (used) headers.Authorization = `Bearer ${used}`;
    let trouble;
    try {
      const response = await fetch(path, { method: body ? "POST" : "GET", body, headers, signal, cache: "no-store" });
      if (response.ok) return response;
      trouble = await troubleOf(response);
      if (trouble.waitS !== null) trouble.waitS *= attempt; // longer each time, never sooner than was asked
    } catch (error) {
      if (signal?.aborted) throw error;
      trouble = new Trouble("The server does not answer. It may have been stopped, or the connection is gone.",
        { kind: "gone", waitS: Math.min(2 ** (attempt - 1), LONGEST_WAIT_S) });
    }
    if (trouble.kind === "key") {
      tell("Waiting for the key.");
      await keyFromReader(used);
    } else if (trouble.waitS !== null && attempt < MOST_TRIES) {
      for (let left = Math.ceil(trouble.waitS); left > 0; left--) {
        tell(`${trouble.message} Trying again in ${left} s (${attempt} of ${MOST_TRIES - 1}).`, trouble.kind);
        await pause(1, signal);
      }
      tell("");
    } else {
      throw trouble;
    }
  }
}

async function troubleOf(response) {
  const said = await wordsOf(response);
  const waitS = retryAfter(response);
  switch (response.status) {
    case 401:
      return new Trouble(said || "This server wants a key.", { kind: "key" });
    case 404:
      return new Trouble(said || "The server knows no such network or address.", { kind: "missing" });
    case 413:
      return new Trouble(`The picture is too large for this server. ${said}`, { kind: "large" });
    case 429:
    case 503:
      return new Trouble("The server has more to do than it can take.", { kind: "busy", waitS: waitS ?? 1 });
    case 504:
      return new Trouble("The server took too long to answer.", { kind: "slow" });
    default:
      return new Trouble(said || `The server answered with status ${response.status}.`, { kind: "refused" });
  }
}

// Seconds, or the date that HTTP allows as well; null where the server says nothing.
function retryAfter(response) {
  const value = response.headers.get("Retry-After");
  if (value === null) return null;
  const seconds = /^\d+$/.test(value.trim()) ? Number(value) : (Date.parse(value) - Date.now()) / 1000;
  return Number.isFinite(seconds) ? Math.min(Math.max(seconds, 1), LONGEST_WAIT_S) : null;
}

async function wordsOf(response) {
  try {
    const { error } = await response.json();
    return String(error.message ?? error);
  } catch {
    return ""; // something between here and the server has answered in its place
  }
}
