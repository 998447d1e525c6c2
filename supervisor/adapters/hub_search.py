"""Searches of the hub for the page: what there is, and what a repository has to choose from.

Whoever types asks often and the same, so answers are kept for a minute. Requests have threads of
their own, and few: a hub that is silent must not take those that plans need.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from supervisor.core.entities import FrozenModel
from supervisor.core.model_reference import FoundRepo, OfferedModel, offered
from supervisor.errors import HubUnreachable

if TYPE_CHECKING:
    from supervisor.adapters.hub_http import Hub

T = TypeVar("T")

KEPT_S: Final = 60.0
KEPT_ANSWERS: Final = 64
AT_ONCE: Final = 4
DEADLINE_S: Final = 25.0
"""For an answer. The hub's own patience ends before, unless others wait or a name is not found."""


class RepoModels(FrozenModel):
    """What a repository has to choose from, the smallest first."""

    repo: str
    files: tuple[OfferedModel, ...]


class HubSearch:
    """Asks the hub, and remembers for a while what it said; errors are not remembered."""

    def __init__(
        self,
        connect: "Callable[[], Hub] | None" = None,
        monotonic_s: Callable[[], float] = time.monotonic,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        """``connect`` gives the hub to ask: unless given, the one that the environment names."""
        self._connect = connect or _impatient_hub
        self._monotonic_s = monotonic_s
        self._answers: OrderedDict[tuple[object, ...], tuple[float, object]] = OrderedDict()
        """And when each came; the latest at the end."""
        self._deadline_s = deadline_s
        self._threads = ThreadPoolExecutor(AT_ONCE, "hub")

    async def search(self, text: str, limit: int) -> list[FoundRepo]:
        """Repositories with GGUF files whose name has ``text``, the most loaded first.

        Raises:
            ModelForbidden, HubOffline, HubUnreachable: With reason, link and remedy.
        """
        text = " ".join(text.split())
        return await self._kept(("search", text, limit), lambda hub: hub.search(text, limit))

    async def models(self, repo: str) -> RepoModels:
        """The models of a repository; none if it has no GGUF files.

        Raises:
            ModelMissing, ModelForbidden, HubOffline, HubUnreachable: With reason, link and remedy.
        """

        def ask(hub: "Hub") -> RepoModels:
            found = hub.listing(repo)  # which may have another name by now
            return RepoModels(repo=found.repo, files=offered(found.files, found.repo))

        return await self._kept(("models", repo), ask)

    async def _kept(self, key: tuple[object, ...], ask: "Callable[[Hub], T]") -> T:
        if (known := self._known(key)) is not None:
            return cast(T, known)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._deadline_s):
                answer = await loop.run_in_executor(self._threads, lambda: ask(self._connect()))
        except TimeoutError as exc:
            raise HubUnreachable(
                f"the hub did not answer within {self._deadline_s:g} s; try again later"
            ) from exc
        self._answers[key] = self._monotonic_s(), answer
        self._answers.move_to_end(key)
        while len(self._answers) > KEPT_ANSWERS:
            self._answers.popitem(last=False)
        return answer

    def _known(self, key: tuple[object, ...]) -> Any:
        came_s, answer = self._answers.get(key, (0.0, None))
        return answer if self._monotonic_s() - came_s < KEPT_S else None


def _impatient_hub() -> "Hub":
    """The hub of the environment, for somebody who looks at the page."""
    from supervisor.adapters.hub_http import Hub, Patience  # half a second, and seldom needed

    return Hub(
        Patience(
            connect_s=4.0,
            silence_s=5.0,
            range_s=8.0,
            tries=2,
            first_pause_s=0.3,
            longest_pause_s=2.0,
        )
    )
