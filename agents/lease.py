"""How long an agent that does not hear of its supervisor keeps its rpc-server."""

from dataclasses import dataclass


@dataclass(slots=True)
class Lease:
    """Renewed by every answered heartbeat. Times are of one monotonic clock."""

    heard_at_s: float
    lease_s: float = 0.0
    """As the supervisor told; 0: none."""

    def renew(self, now_s: float, lease_s: float) -> None:
        """The supervisor has answered."""
        self.heard_at_s, self.lease_s = now_s, lease_s

    def silent_s(self, now_s: float) -> float:
        """Since its last answer."""
        return now_s - self.heard_at_s

    def has_run_out(self, asked_at_s: float) -> bool:
        """Whether a heartbeat that was begun at that time, and failed, was one too many.

        Its beginning counts, not its end: a device that slept may have begun one long before it
        ran out, and has to ask once more when it wakes up.
        """
        return 0 < self.lease_s <= self.silent_s(asked_at_s)
