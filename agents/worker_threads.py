"""How many threads the rpc-servers of this device get, and on which cores they run."""

import logging
from collections.abc import Callable

from agents import cores

log = logging.getLogger(__name__)


class WorkerThreads:
    """Looks at the cores anew for every rpc-server: a phone's system takes and gives them."""

    def __init__(
        self,
        wanted: int | None,
        *,
        is_phone: bool,
        look: Callable[[], cores.Cores] = cores.read,
    ) -> None:
        """``wanted``: by the owner of the device; None: as many as suit the cores."""
        self._wanted = wanted
        self._is_phone = is_phone
        self._look = look
        self._could_pin = True
        self._cores = look()
        self.latest = wanted or cores.threads_for(self._cores, is_phone=is_phone)
        """Of the rpc-server that was started last, or of the first."""

    def choose(self, asked: int | None = None) -> int:
        """For an rpc-server that starts now; ``asked``: by its launch."""
        self._cores = self._look()
        fitting = cores.threads_for(self._cores, is_phone=self._is_phone)
        self.latest = asked or self._wanted or fitting
        return self.latest

    def next(self) -> int:
        """What :meth:`choose` would say now."""
        return self._wanted or cores.threads_for(self._look(), is_phone=self._is_phone)

    def place(self, pid: int) -> None:
        """Pin the rpc-server that :meth:`choose` was asked for.

        Before it has made the threads that compute, which inherit it.
        """
        fast = cores.cores_to_pin(self._cores, self.latest, is_phone=self._is_phone)
        if fast is None:
            return
        try:
            cores.pin(pid, fast)
        except OSError as exc:
            if self._could_pin:  # once: it is the same at every start
                log.warning("rpc_server.not_pinned", extra={"reason": str(exc)})
            self._could_pin = False
