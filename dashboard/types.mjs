// @ts-check
// Shapes of the API, for JSDoc only: nothing imports this file at run time.

/**
 * @typedef {{path?: string, llama_server?: string, version: string, build: string, rpc_protocol: string,
 *   problem: string, release?: string, variant?: string}} Engine
 * @typedef {{build: string, state: "fetching" | "proving" | "ready" | "failed", done_bytes: number, total_bytes: number,
 *   detail: string}} EngineInstall
 * @typedef {{check: string, title: string, verdict: "ok" | "warning" | "blocks" | "unknown", found: string,
 *   remedy: string}} Finding
 * @typedef {{device: string, findings: Finding[]}} Checked what the doctor found on one device
 * @typedef {{near: string, far: string, kind: string, interface: string, round_trip_ms: number | null,
 *   up_bytes_per_s: number | null, in_use: boolean, problem: string}} Wire
 * @typedef {{name: string, description: string, total_bytes: number, free_bytes: number}} GgmlDevice
 * @typedef {{platform: string, machine: string, cores: number, memory_total_bytes: number,
 *   memory_available_bytes: number, ggml_devices: GgmlDevice[], engine: Engine | null,
 *   battery_percent: number | null, battery_charging: boolean | null,
 *   temperature_c: number | null, agent_start?: string, fast_cores?: number | null, derate?: number,
 *   derate_reason?: string, wires?: Finding[]}} Facts
 * @typedef {{state: string, host: string, port: number, pid: number | null,
 *   resident_bytes: number | null, detail: string}} RpcServer
 * @typedef {{id: string, name: string, address: string, rest_port: number, state: string,
 *   reason: string, silent_s: number, used_by: string | null, round_trip_ms: number | null,
 *   facts: Facts | null, rpc_server: RpcServer | null, excluded?: boolean, doing?: string,
 *   speed?: DeviceSpeed | null, wires?: Wire[], wire?: string, engine_install?: EngineInstall | null}} Device
 *   `wire`: the far address that the operator chose, or "" for the fastest
 * @typedef {{decode_bytes_per_s: number | null, up_bytes_per_s: number | null, down_bytes_per_s: number | null,
 *   round_trip_ms: number | null, taken_at: string, stale: string}} DeviceSpeed
 *
 * @typedef {{weight_bytes: number, kv_bytes: number, compute_bytes: number, peak_bytes: number,
 *   budget_bytes: number, available_bytes: number}} MemoryUse
 * @typedef {MemoryUse & {agent_id: string, device: string, ggml_device: string, layers: number,
 *   has_output: boolean}} Shard
 * @typedef {MemoryUse & {layers: number, has_output: boolean}} HostShare
 * @typedef {{device: string, compute_s: number, network_s: number}} StagePrediction
 * @typedef {{decode_tokens_per_s: number, prefill_tokens_per_s: number, load_s: number, prompt_tokens: number,
 *   users: number, output_s: number, stages: StagePrediction[], is_guess: boolean}} Prediction
 * @typedef {{name: string, reason: string, tokens_per_s: number | null, cost_s: number | null}} LeftOut
 * @typedef {{model: {name: string, architecture: string, block_count: number, size_bytes: number,
 *     path?: string, ctx_train_tokens?: number | null},
 *   ctx_tokens: number, slots: number, kv_type: string, ubatch: number, shards: Shard[], host: HostShare,
 *   prediction: Prediction | null, reasons: string[], left_out: LeftOut[]}} Plan
 * @typedef {{code: string, sentence: string, evidence: string[], remedy: string, action: string,
 *   agent_id: string, device: string}} Cause
 * @typedef {{at: string, tokens: number, host_ms: number,
 *   workers: {device: string, compute_ms: number, wire_ms: number}[]}} TokenTime
 * @typedef {{deployment: string, active: number, waiting: number, slots: number}} Traffic
 * @typedef {{at: string, deployment: string, launch_id: number | null, path: string, caller: string, is_stream: boolean,
 *   status: number, code: string, queue_s: number, first_token_s: number | null, total_s: number,
 *   prompt_tokens: number | null, cached_tokens: number | null, generated_tokens: number | null,
 *   tokens_per_s: number | null, retries: number, resumed: number}} RequestRecord
 * @typedef {{device: string, layers: number, weight_bytes: number, loaded_bytes: number}} WorkerLoad
 * @typedef {{device: string, state: string, phase: string, round_trip_ms: number | null,
 *   weight_bytes: number, saved_bytes: number, remaining_bytes: number, bytes_per_s: number,
 *   sent_bytes: number, received_bytes: number, eta_s: number | null, wire_share: number | null, detail: string}} Link
 * @typedef {{name: string, at_s: number, took_s: number}} Milestone
 * @typedef {{model: string, name: string | null, ctx_tokens: number, devices: string[],
 *   split: number[], slots: number, exclude?: string[], order?: string[], kv_type?: string | null,
 *   ubatch?: number | null, goal?: string, aliases?: string[], on_demand?: boolean, ttl_s?: number | null}} Spec
 * @typedef {{id: string, spec: Spec, state: string, reason: string, error_code: string,
 *   phase: string, since: string, failures: number, launch_id: number | null,
 *   port: number | null, retry_at: string, plan: Plan | null, loads: WorkerLoad[],
 *   links: Link[], timeline: Milestone[], tokens_per_second: number | null,
 *   generated_tokens: number | null, generated_s: number | null, cause: Cause | null,
 *   warnings: string[], slow: string, token_time?: TokenTime | null, pull?: Pull | null}} Deployment
 *
 * @typedef {{version: string, main_host: string, url: string, time: string, engine: Engine, problem: string,
 *   devices: Device[], deployments: Deployment[], traffic: Traffic[], requests: RequestRecord[],
 *   pulls?: Pull[]}} Snapshot
 * @typedef {{caller: string, scopes: string[], is_keyless: boolean}} Who
 * @typedef {{path: string, name: string, source?: string, reference?: string, architecture?: string, parameters?: number | null,
 *   quantisation?: string, size_bytes: number, ctx_train_tokens?: number | null, parts?: string[], changed_at?: number,
 *   is_companion?: boolean, projector?: string, is_read?: boolean, problem?: string, problem_code?: string, remedy?: string,
 *   warning?: string, also?: string[]}} Model
 * @typedef {{ctx_tokens: number, fits: boolean, tokens_per_s: number | null, devices: string[], reason: string,
 *   kv_type?: string, missing_bytes?: number | null, smaller_ctx_tokens?: number | null, is_checked?: boolean, is_estimate?: boolean}} Fit
 * @typedef {{reference: string, repo: string, label: string, size_bytes: number, fit: Fit, is_recommended: boolean, reason: string,
 *   licence?: string, about?: string}} Suggestion
 * @typedef {{suggestions: Suggestion[], words: string, notes?: string[]}} Suggestions
 * @typedef {{repo: string, downloads: number, likes: number, updated_at: string, is_gated: boolean}} FoundRepo
 * @typedef {{id: string, reference: string, repo: string, label: string, files: number,
 *   state: "queued" | "fetching" | "paused" | "checking" | "done" | "failed", done_bytes: number, total_bytes: number,
 *   bytes_per_s: number, eta_s: number | null, path: string, error_code: string, detail: string, deployments: string[]}} Pull
 * @typedef {{device: string, is_known: boolean, held_bytes: number, total_bytes: number, needed_bytes: number,
 *   needed_held_bytes: number, plan_problem: string}} Holding `needed`: by a launch now
 * @typedef {{device: string, state: string, total_bytes: number, done_bytes: number, sent_bytes: number, bytes_per_s: number,
 *   eta_s: number | null, problem?: string, note?: string}} Push
 * @typedef {{deletes: string[], keeps: string[], freed_bytes: number, deployments: string[]}} Removal what goes
 * @typedef {{parts: {path: string, size_bytes: number, disk_bytes: number, content: string}[], also: string[]}} ModelWhere
 * @typedef {{platform: string, command: string, qr: string}} JoinLine
 * @typedef {{code: string, expires_at: string, lines: JoinLine[]}} JoinCode
 * @typedef {{id: number, at: string, kind: string, subject: string, change: string, launch_id: number | null,
 *   code: string, text: string}} EventRecord
 * @typedef {{device: string, host: string, port: number, link: string, address: string, rpc_protocol: string,
 *   engine_build: string, round_trip_ms: number, argv: string[], environment: Record<string, string>}} LaunchWorker
 * @typedef {{process: string, predicted_bytes: number, budget_bytes: number, has_gpu: boolean,
 *   measured_bytes: number | null}} ProcessMemory
 * @typedef {{id: number, deployment: string, started_at: string, ended_at: string, outcome: string, reason: string,
 *   error_code: string, cause: Cause | null, plan: Plan, main_host: string, engine: Engine, workers: LaunchWorker[],
 *   argv: string[], environment: Record<string, string>, port: number, timeline: Milestone[], memory: ProcessMemory[],
 *   links: Link[], transitions: EventRecord[]}} LaunchRecord
 * @typedef {{host: string, command: string}} ShellCommand
 * @typedef {{process: string, file: string, offset: number, text: string}} LogChunk
 */

/**
 * What the page holds besides the server's rows.
 *
 * @typedef {{busy: boolean, error: string}} Ask
 * @typedef {{view: string, parts: string[]}} Route
 * @typedef {{
 *   connection: "connecting" | "connected" | "disconnected" | "signed_out",
 *   route: Route,
 *   updated_ms: number,
 *   skew_ms: number,
 *   host: Omit<Snapshot, "devices" | "deployments" | "traffic" | "requests" | "pulls"> | null,
 *   who: Who | null,
 *   devices: Record<string, Device>,
 *   heard_ms: Record<string, number>,
 *   deployments: Record<string, Deployment>,
 *   traffic: Record<string, Traffic>,
 *   requests: RequestRecord[],
 *   models: Model[],
 *   pulls: Record<string, Pull>,
 *   asks: Record<string, Ask>,
 *   copied: string,
 *   announcement: string,
 *   views: Record<string, any>,
 * }} State `views` holds each view's own part by its name
 * @typedef {{type: string, data?: any, at_ms?: number}} Event
 */

/**
 * What actions and effects of a view may use.
 *
 * @typedef {{
 *   api: typeof import("./api.mjs").api,
 *   state: () => State,
 *   now_ms: () => number,
 *   dispatch: (type: string, data?: any) => void,
 *   ask: (key: string, answer: Promise<any>) => Promise<{value: any} | null>,
 *   connect: () => void,
 *   go: (view: string, ...parts: (string | number)[]) => void,
 *   signedOut: () => void,
 *   copyText: (text: string) => Promise<boolean>,
 * }} Page
 *
 * @typedef {{
 *   name: string,
 *   title: string,
 *   initial: any,
 *   reduce: (own: any, event: {type: string, data: any, at_ms: number}, state: State) => any,
 *   render: (state: State, now_ms: number) => any,
 *   actions: Record<string, (page: Page, element: any, data: DOMStringMap, event: any) => unknown>,
 *   effect?: (page: Page, before: State, after: State) => void,
 * }} View
 */

export {};
