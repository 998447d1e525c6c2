"""How often deployments were launched, counted as launches are published."""

from dataclasses import dataclass

from supervisor.core.entities import Deployment, LaunchId
from supervisor.service.events import Change


@dataclass(slots=True)
class _Launches:
    """How often a deployment was launched since we began to look."""

    newest: LaunchId | None
    count: int = 0
    restarts: int = 0


class LaunchCounter:
    """Counts launches as they are published; nobody else remembers how many there were."""

    def __init__(self) -> None:
        self._seen: dict[str, _Launches] = {}

    def heard(self, change: Change) -> None:
        if change.name == "deployment_removed":
            self._seen.pop(change.body["id"], None)
        elif change.name == "deployment":
            body = change.body
            self.saw(body["id"], body["launch_id"], is_repair=body["cause"] is not None)

    def saw(self, name: str, launch_id: LaunchId | None, *, is_repair: bool) -> None:
        """``is_repair``: something had ended the launch before; a wish of the operator forgets it.

        The launch that a deployment has when it is seen first was made by an earlier supervisor.
        """
        seen = self._seen.setdefault(name, _Launches(launch_id))
        if launch_id not in (None, seen.newest):
            seen.newest = launch_id
            seen.count += 1
            seen.restarts += is_repair

    def count(self, deployment: Deployment) -> float | None:
        seen = self._seen.get(deployment.id)
        return seen.count if seen else None

    def restarts(self, deployment: Deployment) -> float | None:
        seen = self._seen.get(deployment.id)
        return seen.restarts if seen else None
