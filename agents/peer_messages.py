"""What supervisor and agents say about chunks that devices give each other; see ``contract``."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class PeerGrant:
    """Leave for one other device to read chunks here by their names, for a while.

    ``seconds`` 0 takes it back; ``limit_bytes_per_s`` is for all peers together, 0: none.
    """

    agent_id: str
    serial: str
    """Of its certificate, as hexadecimal text."""
    seconds: float
    limit_bytes_per_s: int = 0


@dataclass(frozen=True, slots=True)
class FetchOrder:
    """Chunks to get from another device, in this order; the same ``id`` again adds to them."""

    id: str
    agent_id: str
    """Of the device that has them."""
    serial: str
    places: list[str]
    """Where its far end may be, as ADDRESS:PORT, the best first."""
    names: list[str]
    """Of the chunks, as hexadecimal text."""
    start: int = 0
    """How many names this fetch was given before, so that an order repeated changes nothing."""
    limit_bytes_per_s: int = 0


@dataclass(frozen=True, slots=True)
class FetchStatus:
    """How far a fetch is; ``error_code`` and ``detail`` say why it ended, if it did."""

    id: str
    is_over: bool = False
    done_chunks: int = 0
    """Of its names in their order, those that are settled: here now, or in ``lacking``."""
    done_bytes: int = 0
    """That came from the other device."""
    lacking: list[int] = field(default_factory=list)
    """Which of its names, by their number from 0, the other device does not have."""
    error_code: str = ""
    detail: str = ""
