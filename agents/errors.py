"""Errors that an agent reports. Each has a stable ``code`` and says what to do.

The supervisor's tree (``supervisor/errors.py``) continues this one; every leaf of both has a
heading in ``docs/errors.md``.
"""

from typing import ClassVar


class ProjectError(Exception):
    """Base of everything that we raise on purpose.

    ``code`` is stable (API, logs, docs); ``retryable`` means that the same request may succeed
    later without a human.
    """

    code: str = "error"
    retryable: ClassVar[bool] = False


class AgentError(ProjectError):
    """The device cannot do what was asked of it."""


class EngineMissing(AgentError):
    """No llama.cpp programs were found."""

    code = "engine_missing"


class EngineWithoutRpc(AgentError):
    """llama.cpp was found, but it was built without ``-DGGML_RPC=ON``."""

    code = "engine_without_rpc"


class EngineUnusable(AgentError):
    """A llama.cpp program does not run on this device."""

    code = "engine_unusable"


class EngineNotFetched(AgentError):
    """The archive of an engine could not be fetched from the main host, or not unpacked."""

    code = "engine_not_fetched"
    retryable = True


class EngineDigestWrong(AgentError):
    """The archive of an engine is not the one that was offered: its digest differs."""

    code = "engine_digest_wrong"


class EngineInUse(AgentError):
    """The engine cannot be changed now: an rpc-server of it runs."""

    code = "engine_in_use"
    retryable = True


class EngineFixed(AgentError):
    """The device was told which engine to use, so that the main host must not replace it."""

    code = "engine_fixed"


class LocalNetworkDenied(AgentError):
    """macOS keeps this program from its own network (errno 65) until somebody allows it."""

    code = "local_network_denied"


class ServiceRefused(AgentError):
    """The service manager of this host did not take or start our service."""

    code = "service_refused"


class PortInUse(AgentError):
    """A port that we were told to use is taken."""

    code = "port_in_use"


class NoFreePort(AgentError):
    """Every port of the range is taken."""

    code = "no_free_port"
    retryable = True


class StaleGeneration(AgentError):
    """A late message of an older launch; obeying it would disturb a newer one."""

    code = "stale_generation"


class PublicAddressRefused(AgentError):
    """rpc-server has no authentication and must never listen on a public address."""

    code = "public_address_refused"


class RpcServerExited(AgentError):
    """The rpc-server ended by itself. Any exit is a failure, status 0 included."""

    code = "rpc_server_exited"
    retryable = True


class RpcServerSilent(AgentError):
    """The rpc-server runs but did not answer the protocol in time."""

    code = "rpc_server_silent"
    retryable = True


class WorkerTaken(AgentError):
    """Somebody else connected to the fresh rpc-server before we could prove it ready."""

    code = "worker_taken"
    retryable = True


class MeasurementRefused(AgentError):
    """The device cannot be measured now: a launch uses it, or it is being measured already."""

    code = "measurement_refused"
    retryable = True


class MeasurementInterrupted(AgentError):
    """A measurement was ended for something that goes first, such as a launch."""

    code = "measurement_interrupted"
    retryable = True


class MeasurementUnsupported(AgentError):
    """The rpc-server is none whose operations we know how to call."""

    code = "measurement_unsupported"


class MeasurementFailed(AgentError):
    """A measurement did not come to its end: no answer, a lost connection, too little memory."""

    code = "measurement_failed"
    retryable = True


class FolderNotWritable(AgentError):
    """A data or log folder cannot be written."""

    code = "folder_not_writable"


class DiskFull(AgentError):
    """A disk has no room left for what must be written."""

    code = "disk_full"
    retryable = True


class AgentRunning(AgentError):
    """Another agent uses this data folder, and so the same identity and rpc-server."""

    code = "agent_running"


class BadJoinCode(AgentError):
    """The join code cannot be read."""

    code = "bad_join_code"


class JoinRefused(AgentError):
    """The main host did not accept the join token."""

    code = "join_refused"


class MainHostNotTrusted(AgentError):
    """The fingerprint of whoever answered is not the one in the join code."""

    code = "main_host_not_trusted"


class MainHostUnreachable(AgentError):
    """Nobody answered at the addresses in the join code."""

    code = "main_host_unreachable"
    retryable = True


class RemovedByMainHost(AgentError):
    """The main host no longer knows this device; its certificate is void."""

    code = "removed_by_main_host"


class BadMessage(AgentError):
    """A message of a peer lacks a field or has one of the wrong type."""

    code = "bad_message"


class LinkFraming(AgentError):
    """The other end of a link sent what no version of ours sends."""

    code = "link_framing"


class LinkRefused(AgentError):
    """The far end of a link does not admit this launch."""

    code = "link_refused"


class LinkLost(AgentError):
    """The other end of a link is silent, gone, or lost its rpc-server."""

    code = "link_lost"
    retryable = True


class PeerFailed(AgentError):
    """Another device gave chunks that are not what their names say, or none any more."""

    code = "peer_failed"
    retryable = True


class PeerUnsupported(AgentError):
    """An agent is of another version than ours, and gives or takes no chunks as we do."""

    code = "peer_unsupported"


class FetchUnknown(AgentError):
    """A fetch of chunks from another device is not on this device, or not any more."""

    code = "fetch_unknown"
    retryable = True


class RpcFraming(AgentError):
    """A peer claims a length that its RPC command cannot have, or speaks out of turn."""

    code = "rpc_framing"

    def __init__(
        self, message: str, command: str, *, claimed_bytes: int | None = None, allowed: str = ""
    ) -> None:
        super().__init__(message)
        self.command = command
        self.claimed_bytes = claimed_bytes
        self.allowed = allowed
