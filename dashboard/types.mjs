// @ts-check
// Shapes of the API, for JSDoc only: nothing imports this file at run time.

/**
 * @typedef {{path?: string, version: string, build: string, rpc_protocol: string, problem: string}} Engine
 * @typedef {{name: string, description: string, total_bytes: number, free_bytes: number}} GgmlDevice
 * @typedef {{platform: string, machine: string, cores: number, memory_total_bytes: number,
 *   memory_available_bytes: number, ggml_devices: GgmlDevice[], engine: Engine | null,
 *   battery_percent: number | null, battery_charging: boolean | null,
 *   temperature_c: number | null}} Facts
 * @typedef {{state: string, host: string, port: number, pid: number | null,
 *   resident_bytes: number | null, detail: string}} RpcServer
 * @typedef {{id: string, name: string, address: string, rest_port: number, state: string,
 *   reason: string, silent_s: number, used_by: string | null, round_trip_ms: number | null,
 *   facts: Facts | null, rpc_server: RpcServer | null}} Device
 *
 * @typedef {{device: string, ggml_device: string, layers: number, has_output: boolean,
 *   weight_bytes: number, peak_bytes: number, available_bytes: number}} Shard
 * @typedef {{layers: number, has_output: boolean, peak_bytes: number,
 *   available_bytes: number}} HostShare
 * @typedef {{decode_tokens_per_s: number, prefill_tokens_per_s: number, load_s: number}} Prediction
 * @typedef {{model: {name: string, architecture: string, block_count: number, size_bytes: number},
 *   ctx_tokens: number, shards: Shard[], host: HostShare, prediction: Prediction | null,
 *   reasons: string[]}} Plan
 * @typedef {{device: string, layers: number, weight_bytes: number, loaded_bytes: number}} WorkerLoad
 * @typedef {{device: string, state: string, phase: string, round_trip_ms: number | null,
 *   weight_bytes: number, saved_bytes: number, remaining_bytes: number, bytes_per_s: number,
 *   eta_s: number | null, wire_share: number | null, detail: string}} Link
 * @typedef {{name: string, at_s: number, took_s: number}} Milestone
 * @typedef {{model: string, name: string | null, ctx_tokens: number, devices: string[],
 *   split: number[], slots: number}} Spec
 * @typedef {{id: string, spec: Spec, state: string, reason: string, error_code: string,
 *   phase: string, since: string, failures: number, launch_id: number | null,
 *   port: number | null, retry_at: string, plan: Plan | null, loads: WorkerLoad[],
 *   links: Link[], timeline: Milestone[], tokens_per_second: number | null}} Deployment
 *
 * @typedef {{version: string, main_host: string, url: string, time: string, engine: Engine,
 *   devices: Device[], deployments: Deployment[]}} Snapshot
 * @typedef {{path: string, name: string, size_bytes: number}} Model
 * @typedef {{code: string, command: string, expires_at: string}} JoinCode
 * @typedef {{device: string, environment: Record<string, string>}} LaunchWorker
 * @typedef {{environment: Record<string, string>, workers: LaunchWorker[]}} LaunchRecord
 * @typedef {{host: string, command: string}} ShellCommand
 * @typedef {{process: string, file: string, offset: number, text: string}} LogChunk
 */

/**
 * What the page holds besides the server's rows.
 *
 * @typedef {{launch_id: number, record: LaunchRecord | null, commands: ShellCommand[],
 *   error: string}} Commands an open "Exact command" panel
 * @typedef {{process: string, file: string, offset: number, text: string, follow: boolean,
 *   error: string}} Log an open "Logs" panel
 * @typedef {{busy: boolean, error: string}} Request
 * @typedef {{
 *   connection: "connecting" | "connected" | "disconnected" | "signed_out",
 *   updated_ms: number,
 *   skew_ms: number,
 *   host: Omit<Snapshot, "devices" | "deployments"> | null,
 *   devices: Record<string, Device>,
 *   heard_ms: Record<string, number>,
 *   deployments: Record<string, Deployment>,
 *   models: Model[],
 *   launch: Request,
 *   sign_in: Request,
 *   join: JoinCode | null,
 *   join_error: string,
 *   actions: Record<string, Request>,
 *   commands: Record<string, Commands>,
 *   logs: Record<string, Log>,
 *   copied: string,
 *   announcement: string,
 * }} State
 * @typedef {{type: string, data?: any, at_ms?: number}} Event
 */

export {};
