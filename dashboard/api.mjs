// @ts-check
// The main host over HTTP: requests with a deadline, and the event stream.

const TIMEOUT_MS = 20_000;
const STREAM_EVENTS = ["snapshot", "device", "device_removed", "deployment", "deployment_removed"];

export class ApiError extends Error {
  /** @param {string} code @param {string} detail */
  constructor(code, detail) {
    super(detail);
    this.code = code;
  }
}

/**
 * @param {string} method @param {string} path @param {unknown} [body]
 * @returns {Promise<any>} the JSON answer, or null when there is none
 */
async function request(method, path, body) {
  const response = await fetch(path, {
    method,
    headers: body === undefined ? {} : { "Content-Type": "application/json" },
    body: body === undefined ? undefined : JSON.stringify(body),
    signal: AbortSignal.timeout(TIMEOUT_MS),
  }).catch(() => {
    throw new ApiError("unreachable", "The main host does not answer; is its supervisor running?");
  });
  const answer = await response.json().catch(() => null);
  if (response.ok) return answer;
  const detail = typeof answer?.detail === "string" ? answer.detail : `The main host answered ${response.status}.`;
  throw new ApiError(answer?.code ?? "", detail);
}

const deployment = (/** @type {string} */ id) => `/api/deployments/${encodeURIComponent(id)}`;

export const api = {
  models: () => request("GET", "/api/models"),
  signIn: (/** @type {string} */ key) => request("POST", "/api/session", { key }),
  joinCode: () => request("POST", "/api/join-code"),
  launch: (/** @type {object} */ spec) => request("POST", "/api/deployments", spec),
  start: (/** @type {string} */ id) => request("POST", `${deployment(id)}/start`),
  stop: (/** @type {string} */ id) => request("POST", `${deployment(id)}/stop`),
  remove: (/** @type {string} */ id) => request("DELETE", deployment(id)),
  record: (/** @type {number} */ launch) => request("GET", `/api/launches/${launch}`),
  shell: (/** @type {number} */ launch) => request("GET", `/api/launches/${launch}/shell`),
  logs: (/** @type {string} */ id, /** @type {string} */ process, /** @type {number} */ offset) =>
    request("GET", `${deployment(id)}/logs?${new URLSearchParams({ process, offset: String(offset) })}`),
};

/**
 * Follow the events of the main host.
 * @param {(type: string, data: any) => void} onEvent
 * @param {(isClosed: boolean) => void} onLost `isClosed`: the browser will not try again by itself
 * @returns {() => void} ends the stream
 */
export function follow(onEvent, onLost) {
  const source = new EventSource("/api/events");
  for (const type of STREAM_EVENTS) {
    source.addEventListener(type, (event) => onEvent(type, JSON.parse(event.data)));
  }
  source.onerror = () => onLost(source.readyState === EventSource.CLOSED);
  return () => source.close();
}
