"""The last lines of our own log, kept in memory for a report: nobody has to have saved them."""

import logging
from collections import deque
from typing import Final

_LINES: Final = 5000


class OwnLog(logging.Handler):
    """Keeps what is logged, as the handler that is installed already writes it."""

    def __init__(self, lines: int = _LINES) -> None:
        super().__init__()
        self._lines: deque[str] = deque(maxlen=lines)

    def install(self) -> None:
        """Listen to everything that this process logs."""
        root = logging.getLogger()
        for handler in root.handlers[:1]:
            self.setFormatter(handler.formatter)
            self.filters = list(handler.filters)
        root.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(self.format(record))

    def text(self) -> str:
        """Oldest line first."""
        return "".join(f"{line}\n" for line in list(self._lines))
