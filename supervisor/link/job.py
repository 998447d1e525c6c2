"""What the link process is told, and what it tells: JSON lines over a socket in the file system."""

from dataclasses import dataclass, field, replace

CONNECTING, SERVING, DONE, LOST = "connecting", "serving", "done", "lost"


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """Weights that belong on a worker; ``offset_bytes`` counts from the start of ``file``."""

    file: str
    offset_bytes: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class WorkerJob:
    """One worker to link to. ``serial`` is that of its certificate, as hexadecimal text."""

    agent_id: str
    name: str
    address: str
    link_port: int
    serial: str
    answers_file: str = ""
    """Where answers of this rpc-server are kept between launches; empty: nowhere."""
    stores: bool = True
    """Weights go by their names, and the worker keeps them."""
    near: str = ""
    """Address of this host to call from; empty: whichever fits."""
    steady_address: str = ""
    """Where it is called if ``address`` does not answer; empty: nowhere."""
    steady_port: int = 0
    tensors: list[PlannedTensor] = field(default_factory=list)
    """What can be sent ahead, in the order in which llama-server will send it."""

    @property
    def steady(self) -> "WorkerJob | None":
        """The same over the way that is tried second; None: there is none."""
        if not self.steady_port:
            return None
        found = replace(self, address=self.steady_address, link_port=self.steady_port)
        return replace(found, near="", steady_address="", steady_port=0)

    @property
    def where(self) -> str:
        """For people."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{host}:{self.link_port}"


@dataclass(frozen=True, slots=True)
class LinkJob:
    """The links of one launch; ``launch`` 0 only fills the stores of the workers.

    ``window_bytes`` bounds what is in memory, per link and end.
    """

    launch: int
    main_host: str
    silence_s: float
    connect_s: float
    window_bytes: int
    certificate: str
    key: str
    authority: str
    folder: str
    """Of what is kept between launches: which chunks a tensor, or a model file, consists of."""
    workers: list[WorkerJob] = field(default_factory=list)
    limit_bytes_per_s: int = 0
    """For all that is pushed over these links together; 0: none. A launch has no limit."""


@dataclass(frozen=True, slots=True)
class LinkStats:
    """One link as of now. Bytes are counted since it was made."""

    agent_id: str
    state: str = CONNECTING
    port: int = 0
    """Where llama-server finds this worker, on loopback."""
    rpc_protocol: str = ""
    round_trip_s: float | None = None
    error_code: str = ""
    detail: str = ""
    phase: str = ""
    last_command: str = ""
    waiting_s: float = 0.0
    """How long the oldest unanswered question waits."""
    weight_bytes: int = 0
    """Of weights that llama-server gave and the worker has."""
    saved_bytes: int = 0
    """Of them that did not travel, because the worker had them."""
    seeded_bytes: int = 0
    """Sent ahead of llama-server."""
    seed_done_bytes: int = 0
    """Of what can be sent ahead, this much was looked at or sent."""
    seed_total_bytes: int = 0
    peer_bytes: int = 0
    """Of what is there ahead, this came from other devices."""
    sent_bytes: int = 0
    received_bytes: int = 0
    graphs: int = 0
    answers: int = 0
    answered_s: float = 0.0
    """Sum of the times from question to answer since the weights are there, as seen here."""
    computed_s: float = 0.0
    """Part of it that the rpc-server took; the rest is the wire."""
    clients: int = 0
    where: str = ""
    """The far end that was reached, for people."""
    note: str = ""
    """Why it is not the one that was wanted; empty: it is."""
