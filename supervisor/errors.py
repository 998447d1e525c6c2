"""Errors of the supervisor. The tree starts in ``agents/errors.py``.

``InputError``     the request is wrong: the caller must change it
``CapacityError``  the request is right, and this cluster cannot do it now
``EngineError``    a llama.cpp program failed
``PeerError``      a device or the main host did not answer as it should
``StateError``     the request does not fit the present state

A message says what happened, the numbers, and what to do, in one sentence.
"""

from collections.abc import Mapping

from agents.errors import ProjectError


class InputError(ProjectError):
    """The request is wrong; it will fail again until it is changed."""


class ModelMissing(InputError):
    """The model file does not exist or cannot be read."""

    code = "model_missing"


class ModelBroken(InputError):
    """The model file is not a usable GGUF."""

    code = "model_broken"


class ModelAmbiguous(InputError):
    """The name of a model on the hub fits several."""

    code = "model_ambiguous"


class ModelForbidden(InputError):
    """The hub does not let this account read the model."""

    code = "model_forbidden"


class PullUnknown(InputError):
    """No pull of that id exists."""

    code = "pull_unknown"


class ReleaseUnknown(InputError):
    """The release site knows no such build, or it holds nothing for a platform."""

    code = "release_unknown"


class BadSettings(InputError):
    """The settings file or the environment has an unknown or impossible value."""

    code = "bad_settings"


class BadSplit(InputError):
    """A split or device list that the model or the cluster cannot have."""

    code = "bad_split"


class DeviceUnknown(InputError):
    """No device of that name has joined."""

    code = "device_unknown"


class DeploymentUnknown(InputError):
    """No deployment of that name exists."""

    code = "deployment_unknown"


class LaunchUnknown(InputError):
    """No launch with that number was recorded."""

    code = "launch_unknown"


class BadToken(InputError):
    """The join token is wrong, used up or expired."""

    code = "bad_token"


class BadRequest(InputError):
    """The request cannot be read."""

    code = "bad_request"


class EngineOptionRefused(InputError):
    """An option for llama-server that there is not, that is ours, or that has no such value."""

    code = "engine_option_refused"


class OptionFileUnusable(InputError):
    """A file that an option for llama-server names is missing, or of another kind."""

    code = "option_file_unusable"


class KeyRequired(InputError):
    """A key is needed from anywhere but this host."""

    code = "key_required"


class ScopeMissing(InputError):
    """The key is good, but not for this."""

    code = "scope_missing"


class ApiKeyUnknown(InputError):
    """No API key of that name exists."""

    code = "api_key_unknown"


class RouteWithheld(InputError):
    """llama-server has this route, and the gateway does not offer it."""

    code = "route_withheld"


class RouteUnknown(InputError):
    """The gateway has no such route."""

    code = "route_unknown"


class RemoteMediaRefused(InputError):
    """The request names an image or other media by an address, not by its content."""

    code = "remote_media_refused"


class RequestTooLarge(InputError):
    """The body of a request is larger than this server takes, or takes at the moment."""

    code = "request_too_large"


class OriginRefused(InputError):
    """A web page of another site tried to use the keyless loopback access."""

    code = "origin_refused"


class CapacityError(ProjectError):
    """The cluster cannot do this now."""


class NoDevices(CapacityError):
    """No device is ready to serve."""

    code = "no_devices"
    retryable = True


class DeviceSetAside(CapacityError):
    """A device failed so often that it is left alone for a while."""

    code = "device_set_aside"
    retryable = True


class NothingToPush(CapacityError):
    """The plan has no worker whose store could be filled."""

    code = "nothing_to_push"


class InsufficientMemory(CapacityError):
    """The model fits nowhere; ``shortfall`` has the numbers, ready for JSON."""

    code = "insufficient_memory"

    def __init__(self, message: str, shortfall: Mapping[str, object] | None = None) -> None:
        super().__init__(message)
        self.shortfall = shortfall or {}


class RateLimited(CapacityError):
    """A key has made more requests than it may, or has too many open; or wrong ones were tried.

    ``retry_after_s`` says when the next one may come.
    """

    code = "rate_limited"
    retryable = True

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueueFull(CapacityError):
    """As many requests wait for a deployment as may wait.

    ``retry_after_s`` is about when one of them will have been answered.
    """

    code = "queue_full"
    retryable = True

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class TooManyStreams(CapacityError):
    """As many listeners follow logs as may do so at once."""

    code = "too_many_streams"
    retryable = True


class EngineError(ProjectError):
    """A llama.cpp program failed."""


class EngineExited(EngineError):
    """llama-server ended by itself."""

    code = "engine_exited"
    retryable = True


class EngineKilled(EngineError):
    """Somebody ended llama-server with a signal, and memory was not the reason."""

    code = "engine_killed"
    retryable = True


class EngineFrozen(EngineError):
    """llama-server runs and does not answer: stopped by a signal, or stuck."""

    code = "engine_frozen"
    retryable = True


class EngineHung(EngineError):
    """A busy slot makes no progress, and nobody is to blame for it."""

    code = "engine_hung"
    retryable = True


class HostOutOfMemory(EngineError):
    """The kernel of the main host ended llama-server for want of memory."""

    code = "host_out_of_memory"
    retryable = True


class EngineRefusedModel(EngineError):
    """llama-server read the model and cannot use it."""

    code = "engine_refused_model"


class ArchitectureUnsupported(EngineError):
    """This build of llama.cpp does not know the architecture of the model."""

    code = "architecture_unsupported"


class ChatTemplateBroken(EngineError):
    """llama-server cannot read the chat template of the model."""

    code = "chat_template_broken"


class AllocationRefused(EngineError):
    """A buffer for weights or computation could not be allocated where the plan puts it."""

    code = "allocation_refused"
    retryable = True


class CacheDoesNotFit(EngineError):
    """The cache of keys and values for the whole context could not be allocated."""

    code = "cache_does_not_fit"
    retryable = True


class EngineRefusedFlag(EngineError):
    """llama-server does not know an option."""

    code = "engine_refused_flag"


class EngineToolMissing(EngineError):
    """This build of llama.cpp lacks a program that only estimates."""

    code = "engine_tool_missing"


class EstimateFailed(EngineError):
    """The engine could not say how much memory a placement needs."""

    code = "estimate_failed"
    retryable = True


class AnswerLost(EngineError):
    """llama-server ended in the middle of an answer that cannot be continued exactly."""

    code = "answer_lost"


class EngineUnreachable(EngineError):
    """llama-server does not take the gateway's request, though it should."""

    code = "engine_unreachable"
    retryable = True


class EngineNotReady(EngineError):
    """llama-server listens but its first completion failed."""

    code = "engine_not_ready"
    retryable = True


class ConnectStalled(EngineError):
    """llama-server never opened its port: a worker does not answer it."""

    code = "connect_stalled"
    retryable = True


class LoadStalled(EngineError):
    """Loading stopped making progress."""

    code = "load_stalled"
    retryable = True


class ModelReplaced(EngineError):
    """The model file was changed, cut short or moved away while llama-server used it."""

    code = "model_replaced"
    retryable = True

    def __init__(self, message: str, *, is_harmful: bool = False) -> None:
        """``is_harmful``: what is answered from now on may be wrong."""
        super().__init__(message)
        self.is_harmful = is_harmful


class LinkProcessEnded(EngineError):
    """The process that holds the links of a launch ended by itself."""

    code = "link_process_ended"
    retryable = True


class LinkProcessFrozen(EngineError):
    """The process that holds the links of a launch does not move."""

    code = "link_process_frozen"
    retryable = True


class DeploymentSlow(EngineError):
    """A deployment answers, but far slower than it does otherwise. It ends nothing."""

    code = "deployment_slow"
    retryable = True


class PeerError(ProjectError):
    """A device did not answer as it should."""


class AgentUnreachable(PeerError):
    """The agent of a device does not answer."""

    code = "agent_unreachable"
    retryable = True


class AgentRefused(PeerError):
    """The agent of a device answered with an error of its own.

    ``code`` becomes the agent's own, so that the cause is not lost on the way.
    """

    code = "agent_refused"

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class WorkerBusy(PeerError):
    """Somebody else is connected to a worker's rpc-server."""

    code = "worker_busy"
    retryable = True


class DeviceExcluded(PeerError):
    """A device was named that the operator wants no plan with."""

    code = "device_excluded"


class WorkerUnreachable(PeerError):
    """The main host cannot reach a worker's rpc port, though its agent says that it runs."""

    code = "worker_unreachable"
    retryable = True


class WorkerNotRpcServer(PeerError):
    """Something else than an rpc-server listens on a worker's port."""

    code = "worker_not_rpc_server"


class WorkerIncompatible(PeerError):
    """A worker speaks another RPC version, or runs another build."""

    code = "worker_incompatible"


class WorkerLost(PeerError):
    """A worker of a running deployment is gone."""

    code = "worker_lost"
    retryable = True


class WorkerKilled(PeerError):
    """Somebody ended the rpc-server of a worker, and memory was not the reason."""

    code = "worker_killed"
    retryable = True


class WorkerKilledByAndroid(PeerError):
    """Android ended the rpc-server of a phone, as it does with background work."""

    code = "worker_killed_by_android"
    retryable = True


class WorkerOutOfMemory(PeerError):
    """The kernel of a worker ended its rpc-server for want of memory."""

    code = "worker_out_of_memory"
    retryable = True


class WorkerCrashed(PeerError):
    """The rpc-server of a worker ended by an error of its own."""

    code = "worker_crashed"
    retryable = True


class WorkerFrozen(PeerError):
    """The rpc-server of a worker is there and does not move."""

    code = "worker_frozen"
    retryable = True


class LinkBlackHole(PeerError):
    """The link to a worker went silent, though its agent answers."""

    code = "link_black_hole"
    retryable = True


class GpuTimeout(PeerError):
    """The system ended work of a GPU that took too long."""

    code = "gpu_timeout"
    retryable = True


class GpuOutOfMemory(PeerError):
    """A GPU ran out of memory while it computed."""

    code = "gpu_out_of_memory"
    retryable = True


class AgentRestarted(PeerError):
    """The agent of a worker began anew, and so its rpc-server was lost."""

    code = "agent_restarted"
    retryable = True


class HubUnreachable(PeerError):
    """The model hub does not answer, or not as it should."""

    code = "hub_unreachable"
    retryable = True


class SupervisorUnreachable(PeerError):
    """The command line cannot reach the supervisor."""

    code = "supervisor_unreachable"
    retryable = True


class SupervisorRefused(PeerError):
    """The supervisor answered with an error; its code and text are kept."""

    code = "supervisor_refused"

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class StateError(ProjectError):
    """The request does not fit the present state."""


class DeploymentExists(StateError):
    """A deployment of that name is running already."""

    code = "deployment_exists"


class DeploymentNotReady(StateError):
    """The model cannot answer yet, or no longer."""

    code = "deployment_not_ready"
    retryable = True


class WaitedTooLong(StateError):
    """A request waited for its deployment as long as it may.

    ``more`` has state, progress and cause; ``retry_after_s`` is None if nobody can say.
    """

    code = "waited_too_long"
    retryable = True

    def __init__(
        self,
        message: str,
        more: Mapping[str, object] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.more = dict(more or {})
        self.retry_after_s = retry_after_s


class ModelInUse(StateError):
    """A model is to be deleted that a deployment runs."""

    code = "model_in_use"


class ModelKeptElsewhere(StateError):
    """A model is to be deleted that another tool keeps, which would miss it."""

    code = "model_kept_elsewhere"


class ApiKeyExists(StateError):
    """A key of that name exists already."""

    code = "api_key_exists"


class DeviceReturned(StateError):
    """A launch was ended to use a device that came back or joined."""

    code = "device_returned"
    retryable = True


class HubOffline(StateError):
    """The environment forbids to ask the model hub."""

    code = "hub_offline"


class SupervisorRunning(StateError):
    """Another supervisor uses this data folder."""

    code = "supervisor_running"


class StoreUnusable(StateError):
    """The database cannot be written: a full disk, a foreign file, a newer version."""

    code = "store_unusable"
    retryable = True


class IllegalTransition(Exception):
    """A bug of ours, never an expected outcome; nothing catches it."""


class ModelDigestWrong(PeerError):
    """A file came with other bytes than the hub says it has. It was thrown away."""

    code = "model_digest_wrong"
    retryable = True


class PullFailed(PeerError):
    """A model that a deployment waits for could not be fetched.

    ``code`` becomes that of the cause, so that it is not lost on the way.
    """

    code = "pull_failed"

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class PullEnded(StateError):
    """What fetched a model was ended again and again, or its pull was removed."""

    code = "pull_ended"
    retryable = True


class ReleaseSiteUnreachable(PeerError):
    """The site of llama.cpp's releases did not answer, or not with what it should."""

    code = "release_site_unreachable"
    retryable = True


class EngineChangeRunning(StateError):
    """The cluster is being moved to another build already."""

    code = "engine_change_running"
    retryable = True


class EngineChangeFailed(EngineError):
    """A build did not work on this cluster, which went back to the one before."""

    code = "engine_change_failed"


class RdmaUnavailable(StateError):
    """RDMA is required by a setting, and one end of a worker's wire cannot do it."""

    code = "rdma_unavailable"


class DeviceParked(CapacityError):
    """A device asked to be left alone: its battery is low, or it is too hot."""

    code = "device_parked"
    retryable = True
