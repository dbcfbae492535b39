// Requests to the server: a few at a time, retried where that helps, with error messages for the user.
// The API key is kept in the memory of this module and nowhere else.

const MAX_PARALLEL = 3, MAX_ATTEMPTS = 8, LONGEST_WAIT_S = 60;

let key = "";
let keyRequest = null;
let requestKey = () => Promise.resolve(null);

// `handler(wasInvalid)` returns a promise of an API key, or of null if the user gives none.
export function onKeyRequired(handler) {
  requestKey = handler;
}

export class RequestError extends Error {
  constructor(message, { kind = "", waitS = null } = {}) {
    super(message);
    this.kind = kind;
    this.waitS = waitS;
  }
}

const running = new Set();
const waiting = [];

// Run `task` when fewer than MAX_PARALLEL are running, in the order of the calls.
export function enqueue(task) {
  return new Promise((resolve, reject) => {
    waiting.push(() => task().then(resolve, reject));
    startNext();
  });
}

function startNext() {
  while (running.size < MAX_PARALLEL && waiting.length) {
    const promise = waiting.shift()();
    running.add(promise);
    promise.finally(() => { running.delete(promise); startNext(); });
  }
}

function sleep(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal?.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); }, { once: true });
  });
}

async function updateKey(used) {
  if (used !== key) return; // another request got a key meanwhile
  keyRequest ??= requestKey(used !== "").finally(() => { keyRequest = null; });
  const given = await keyRequest;
  if (given === null) throw new RequestError("This server requires an API key, and none was given.", { kind: "key" });
  key = given;
}

// Send one request as it is, with the API key; after a 401 the key is requested and the request sent again.
export async function send(path, { method = "GET", headers = {}, body, signal } = {}) {
  for (;;) {
    const used = key;
    const authorization = used ? { Authorization: `Bearer ${used}` } : {};
    const response = await fetch(path, { method, body, headers: { ...headers, ...authorization }, signal, cache: "no-store" });
    if (response.status !== 401) return response;
    await updateKey(used);
  }
}

// Return a successful response; `onStatus(message, kind)` is called while the request waits.
//
// Retried: an overloaded server after its Retry-After, and longer each time; a server that cannot be reached after
// 1, 2, 4 ... seconds; a server that requires a key, once there is one.
export async function call(path, { body, accept = "application/json", signal, onStatus = () => {} } = {}) {
  for (let attempt = 1; ; attempt++) {
    const headers = { Accept: accept };
    let error;
    try {
      const response = await send(path, { method: body ? "POST" : "GET", body, headers, signal });
      if (response.ok) return response;
      error = await errorOf(response);
      if (error.waitS !== null) error.waitS *= attempt; // longer each time, never sooner than Retry-After
    } catch (reason) {
      if (signal?.aborted || reason instanceof RequestError) throw reason;
      error = new RequestError("Cannot reach the server. It may have been stopped, or the connection is down.",
        { kind: "unreachable", waitS: Math.min(2 ** (attempt - 1), LONGEST_WAIT_S) });
    }
    if (error.waitS === null || attempt >= MAX_ATTEMPTS) throw error;
    for (let left = Math.ceil(error.waitS); left > 0; left--) {
      onStatus(`${error.message} Retrying in ${left} s (${attempt} of ${MAX_ATTEMPTS - 1}).`, error.kind);
      await sleep(1, signal);
    }
    onStatus("");
  }
}

async function errorOf(response) {
  const message = await errorMessage(response);
  switch (response.status) {
    case 404:
      return new RequestError(message || "Unknown model or route.", { kind: "not-found" });
    case 413:
      return new RequestError(`The image is too large for this server. ${message}`, { kind: "too-large" });
    case 429:
    case 503:
      return new RequestError("The server is overloaded or not ready.", { kind: "overloaded", waitS: retryAfter(response) ?? 1 });
    case 504:
      return new RequestError("The server did not respond in time.", { kind: "timeout" });
    default:
      return new RequestError(message || `The server responded with status ${response.status}.`, { kind: "rejected" });
  }
}

// The header holds seconds or a date; null without one.
function retryAfter(response) {
  const value = response.headers.get("Retry-After");
  if (value === null) return null;
  const seconds = /^\d+$/.test(value.trim()) ? Number(value) : (Date.parse(value) - Date.now()) / 1000;
  return Number.isFinite(seconds) ? Math.min(Math.max(seconds, 1), LONGEST_WAIT_S) : null;
}

async function errorMessage(response) {
  try {
    const { error } = await response.json();
    return String(error.message ?? error);
  } catch {
    return ""; // a proxy between this page and the server has responded instead
  }
}
