// @ts-check
// The main host over HTTP: requests with a deadline, and event streams.

const TIMEOUT_MS = 20_000;
const PLAN_TIMEOUT_MS = 120_000;
const STREAM_EVENTS = [
  "snapshot", "device", "device_removed", "deployment", "deployment_removed", "request", "traffic",
  "engine_change", "models", "pull", "pull_removed",
];

export class ApiError extends Error {
  /** @param {string} code @param {string} detail @param {number} [status] 0: there was no answer @param {any} [problem] the whole answer */
  constructor(code, detail, status = 0, problem = null) {
    super(detail);
    this.code = code;
    this.status = status;
    this.problem = problem;
  }
}

/**
 * @param {string} method @param {string} path @param {unknown} [body] @param {AbortSignal} [signal]
 * @returns {Promise<Response>} a good answer
 */
export async function send(method, path, body, signal) {
  const response = await fetch(path, {
    method,
    headers: body === undefined ? {} : { "Content-Type": "application/json" },
    body: body === undefined ? undefined : JSON.stringify(body),
    signal,
  }).catch((error) => {
    if (error?.name === "AbortError") throw error;
    throw new ApiError("unreachable", "The main host does not answer; is its supervisor running?");
  });
  if (response.ok) return response;
  const answer = await response.json().catch(() => null);
  const error = answer?.error ?? answer; // the gateway speaks its clients' language
  const detail = error?.detail ?? error?.message;
  throw new ApiError(error?.code ?? "", typeof detail === "string" ? detail : `The main host answered ${response.status}.`, response.status, error);
}

/**
 * @param {string} method @param {string} path @param {unknown} [body] @param {number} [timeout_ms]
 * @returns {Promise<any>} the JSON answer, or null when there is none
 */
async function request(method, path, body, timeout_ms = TIMEOUT_MS) {
  const response = await send(method, path, body, AbortSignal.timeout(timeout_ms));
  return response.json().catch(() => null);
}

const deployment = (/** @type {string} */ id) => `/api/deployments/${encodeURIComponent(id)}`;
const device = (/** @type {string} */ id) => `/api/devices/${encodeURIComponent(id)}`;
const pull = (/** @type {string} */ id) => `/api/models/pulls/${encodeURIComponent(id)}`;
const query = (/** @type {Record<string, any>} */ values) => new URLSearchParams(values);

export const api = {
  /** Of this host, as they were found last, or looked for anew. */
  models: (isAnew = false) => request("GET", `/api/models?${query({ companions: true, ...(isAnew && { max_age_s: 0 }) })}`, undefined, PLAN_TIMEOUT_MS),
  /** `dry_run`: only say what would go. */
  removeModel: (/** @type {string} */ path, dry_run = false) => request("DELETE", `/api/models?${query({ path, dry_run })}`, undefined, PLAN_TIMEOUT_MS),
  fit: (/** @type {string} */ model, /** @type {number} */ ctx_tokens) => request("GET", `/api/models/fit?${query({ model, ctx_tokens })}`, undefined, PLAN_TIMEOUT_MS),
  where: (/** @type {string} */ model) => request("GET", `/api/models/where?${query({ model })}`),
  /** Fields of a spec that are kept for a model. */
  modelSettings: (/** @type {string} */ model) => request("GET", `/api/models/settings?${query({ model })}`).then(([{ values }]) => values),
  setModel: (/** @type {string} */ model, /** @type {object} */ values) => request("PUT", `/api/models/settings?${query({ model })}`, values),
  forgetModel: (/** @type {string} */ model) => request("DELETE", `/api/models/settings?${query({ model })}`),
  /** Server-sent events, as for `measureDevice`, here and in the next three. */
  holdings: (/** @type {string} */ model, /** @type {AbortSignal} */ signal) => send("GET", `/api/models/holdings/stream?${query({ model })}`, undefined, signal),
  suggest: (/** @type {string} */ q, /** @type {number} */ ctx_tokens, /** @type {AbortSignal} */ signal) =>
    send("GET", `/api/models/suggest?${query({ q, ctx_tokens })}`, undefined, signal),
  verifyModel: (/** @type {string} */ model, /** @type {AbortSignal} */ signal) => send("POST", `/api/models/verify?${query({ model })}`, undefined, signal),
  pushModel: (/** @type {object} */ spec, /** @type {AbortSignal} */ signal) => send("POST", "/api/models/push", spec, signal),
  pull: (/** @type {string} */ reference) => request("POST", "/api/models/pulls", { reference }, PLAN_TIMEOUT_MS),
  changePull: (/** @type {string} */ id, /** @type {"pause" | "resume"} */ change) => request("POST", `${pull(id)}/${change}`),
  removePull: (/** @type {string} */ id) => request("DELETE", pull(id)),
  search: (/** @type {string} */ q) => request("GET", `/api/models/search?${query({ q })}`, undefined, PLAN_TIMEOUT_MS),
  repo: (/** @type {string} */ repo) => request("GET", `/api/models/repo?${query({ repo })}`, undefined, PLAN_TIMEOUT_MS),
  /** `replaces`: the deployment that is edited, whose own devices count as free. */
  plan: (/** @type {object} */ spec, /** @type {AbortSignal} */ signal, replaces = "") =>
    send("POST", `/api/plan${replaces && `?${query({ replaces })}`}`, spec, AbortSignal.any([signal, AbortSignal.timeout(PLAN_TIMEOUT_MS)])).then((answer) => answer.json()),

  who: () => request("GET", "/api/session"),
  signIn: (/** @type {string} */ key) => request("POST", "/api/session", { key }),
  signOut: () => request("DELETE", "/api/session"),
  joinCode: () => request("POST", "/api/join-code"),
  settings: () => request("GET", "/api/settings"),
  keys: () => request("GET", "/api/keys"),
  makeKey: (/** @type {object} */ wanted) => request("POST", "/api/keys", wanted),
  revokeKey: (/** @type {string} */ name) => request("DELETE", `/api/keys/${encodeURIComponent(name)}`),

  changeDevice: (/** @type {string} */ id, /** @type {object} */ change) => request("PATCH", device(id), change),
  drainDevice: (/** @type {string} */ id) => request("POST", `${device(id)}/drain`, undefined, PLAN_TIMEOUT_MS),
  removeDevice: (/** @type {string} */ id) => request("DELETE", device(id)),
  /** Server-sent events; the caller reads them with `eventsOf`. */
  measureDevice: (/** @type {string} */ id) => send("POST", `${device(id)}/measure`),

  /** What the doctor finds on a device; without a name: everywhere. */
  check: (name = "") => request("GET", `/api/doctor${name && `?${query({ device: name })}`}`, undefined, PLAN_TIMEOUT_MS),

  engines: () => request("GET", "/api/engine-builds"),
  /** Server-sent events, as for `measureDevice`. */
  installEngine: (build = "") => send("POST", "/api/engine-builds", build ? { build } : {}),
  engineChange: () => request("GET", "/api/engine-change"),
  useEngine: (/** @type {string} */ build) => send("POST", "/api/engine-change", { build }),

  launch: (/** @type {object} */ spec) => request("POST", "/api/deployments", spec, PLAN_TIMEOUT_MS),
  replace: (/** @type {string} */ id, /** @type {object} */ spec) => request("PUT", deployment(id), spec, PLAN_TIMEOUT_MS),
  start: (/** @type {string} */ id) => request("POST", `${deployment(id)}/start`),
  restart: (/** @type {string} */ id) => request("POST", `${deployment(id)}/restart`, undefined, PLAN_TIMEOUT_MS),
  stop: (/** @type {string} */ id, now = false) => request("POST", `${deployment(id)}/stop?${query({ now })}`, undefined, PLAN_TIMEOUT_MS),
  remove: (/** @type {string} */ id) => request("DELETE", deployment(id)),
  logStream: (/** @type {string} */ id) => `${deployment(id)}/logs/stream`,

  records: (limit = 50) => request("GET", `/api/launches?${query({ limit })}`),
  record: (/** @type {number | string} */ launch) => request("GET", `/api/launches/${launch}`),
  shell: (/** @type {number | string} */ launch) => request("GET", `/api/launches/${launch}/shell`),
};

/**
 * Follow an event stream. The browser reconnects by itself, unless it was refused.
 * @param {string} path @param {string[]} types @param {(type: string, data: any) => void} onEvent
 * @param {(isClosed: boolean) => void} onLost `isClosed`: the browser will not try again by itself
 * @returns {() => void} ends the stream
 */
export function follow(path, types, onEvent, onLost) {
  const source = new EventSource(path);
  for (const type of types) source.addEventListener(type, (event) => onEvent(type, JSON.parse(event.data)));
  source.onerror = () => onLost(source.readyState === EventSource.CLOSED);
  return () => source.close();
}

/** @param {(type: string, data: any) => void} onEvent @param {(isClosed: boolean) => void} onLost */
export const followAll = (onEvent, onLost) => follow("/api/events", STREAM_EVENTS, onEvent, onLost);

/**
 * The events of an answer that is a stream; `data` is the text behind `data:`.
 * @param {Response} response @returns {AsyncGenerator<{type: string, data: string}>}
 */
export async function* eventsOf(response) {
  const reader = /** @type {ReadableStream<Uint8Array>} */ (response.body).pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value = "" } = await reader.read();
      const blocks = (rest + value).split(/\r?\n\r?\n/);
      rest = done ? "" : blocks.pop() ?? "";
      yield* blocks.map(parseEvent).filter((event) => event !== null);
      if (done) return;
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}

/**
 * Follow work to its result. Who leaves ends it.
 * @param {Response} response @param {(progress: any) => void} tell @param {string} broken what to say when it breaks off
 */
export async function resultOf(response, tell, broken) {
  try {
    for await (const { type, data } of eventsOf(response)) {
      const body = JSON.parse(data);
      if (type === "progress") tell(body);
      if (type === "problem") throw new ApiError(body.code, body.detail, body.status);
      if (type === "result") return body;
    }
  } catch (error) {
    if (error instanceof ApiError) throw error;
  }
  throw new ApiError("unreachable", broken);
}

/** @param {string} block */
function parseEvent(block) {
  let type = "message";
  const data = [];
  for (const line of block.split(/\r?\n/)) {
    if (line.startsWith("event:")) type = line.slice(6).trim();
    if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
  }
  return data.length ? { type, data: data.join("\n") } : null;
}
