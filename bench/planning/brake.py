"""Makes a process slow: lets it run for a moment, then stops it in proportion to what it computed.

    python bench/planning/brake.py PID

Each line on stdin, a factor from 1 (no brake) up, is answered by ``ok``. When stdin ends, the
process is let go, so nothing stays stopped if whoever started this dies.

Not a quota of the processor: with a period of 3 ms, at 250 ticks a second, that did not bind at all
below 3 ms of work, so that short runs of layers were as fast as without it. And not a fixed rhythm:
how long a processor takes to wake up shifted that by 15 %. What is charged here is the processor
time of the process, so the time of any work is proportional to it, whatever else happens.
"""

import contextlib
import ctypes
import os
import select
import signal
import sys
import time

STEP_S = 0.0004
"""How long it may run before it is stopped, to see what it has computed."""

IDLE_STEP_S = 0.001
"""The same for one that slept; what it computes meanwhile is made up for."""

STOPPING_S = 0.00002
"""Until then it stands still, and the scheduler has counted all of its time."""

STEPS = 32
"""Between two looks at stdin."""

TIMER_SLACK = 29


class Brake:
    """Holds on to the process itself, not to its number, which may be used again."""

    def __init__(self, pid: int) -> None:
        self.handle = os.pidfd_open(pid)
        # ``make_process_cpuclock`` of Linux: the scheduler's clock of that process.
        self.clock = (~pid << 3) | 2
        self.factor = 1.0
        self.charged_s = 0.0
        self.debt_s = 0.0
        self.step_s = STEP_S

    def run(self) -> None:
        """Obey stdin until it or the process ends."""
        try:
            while self._obey():
                for _ in range(STEPS if self.factor > 1 else 0):
                    self._step()
        except OSError:
            return
        finally:
            with contextlib.suppress(OSError):
                self._send(signal.SIGCONT)

    def _obey(self) -> bool:
        """Read a line if there is one, or wait for one while there is nothing to do."""
        timeout_s = 0.0 if self.factor > 1 else None
        if not select.select([sys.stdin], [], [], timeout_s)[0]:
            return True
        line = sys.stdin.readline()
        if not line:
            return False
        self.factor = float(line)
        self.charged_s, self.debt_s = time.clock_gettime(self.clock), 0.0
        sys.stdout.write("ok\n")
        sys.stdout.flush()
        return True

    def _step(self) -> None:
        """The clock of a process that runs is only right at ticks; so it is stopped first."""
        time.sleep(self.step_s)
        started_s = time.perf_counter()
        self._send(signal.SIGSTOP)
        time.sleep(STOPPING_S)
        used_s = time.clock_gettime(self.clock)
        self.debt_s += (used_s - self.charged_s) * (self.factor - 1)
        self.step_s = STEP_S if used_s - self.charged_s > STOPPING_S else IDLE_STEP_S
        self.charged_s = used_s
        left_s = self.debt_s - (time.perf_counter() - started_s)
        if left_s > 0:
            time.sleep(left_s)
        self._send(signal.SIGCONT)
        self.debt_s = max(0.0, self.debt_s - (time.perf_counter() - started_s))

    def _send(self, number: signal.Signals) -> None:
        signal.pidfd_send_signal(self.handle, number)


def main() -> None:
    ctypes.CDLL(None).prctl(TIMER_SLACK, 1000, 0, 0, 0)
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(20))
    with contextlib.suppress(KeyboardInterrupt):
        Brake(int(sys.argv[1])).run()


if __name__ == "__main__":
    main()
