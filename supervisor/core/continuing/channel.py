"""One of the two texts of an answer, its reasoning or its content, as it grows."""


class Echo:
    """Finds the end of what an engine says again before it says something new.

    llama-server repeats the text that an answer has to begin with, unless it is told not to. It
    comes in front of the first new text, or nearly so: a parser may hold its last part back, and
    some templates put marks before it or white space around it.
    """

    __slots__ = ("_is_first", "_left")

    def __init__(self, expected: str) -> None:
        self._left = expected
        self._is_first = True

    def new_in(self, text: str) -> str:
        """What of a text is new."""
        left, is_first = self._left, self._is_first
        self._is_first = False
        if not left:
            return text
        if left.startswith(text):
            self._left = left[len(text) :]
            return ""
        self._left = ""
        if text.startswith(left):
            return text[len(left) :]
        return _after(text, left) if is_first else text


def _after(text: str, expected: str) -> str:
    """What follows an echo with something before it, or with other white space around it."""
    _, found, tail = text.partition(expected)
    if found:
        return tail
    core, tail = expected.strip(), text
    if core:
        head, found, tail = text.partition(core)
        if not found or head.strip():
            return text  # no echo at all
    spaces = expected[len(expected.rstrip()) :]
    while spaces and tail.startswith(spaces[0]):
        spaces, tail = spaces[1:], tail[1:]
    return tail


class Channel:
    """The new text of one kind, beyond what the client itself had the answer begin with."""

    __slots__ = ("_drops_echo", "_echo", "_echoed", "_is_over", "given", "parts")

    def __init__(self, given: str = "", *, is_echoed: bool = False, is_over: bool = False) -> None:
        """Begin.

        Args:
            given: By the client, for the answer to begin with.
            is_echoed: Whether the engine says it again.
            is_over: Whether nothing can be added: the answer goes on with the other channel.
        """
        self.given = given
        self.parts: list[str] = []
        self._echo = Echo(given) if given and is_echoed else None
        self._is_over = is_over
        self._drops_echo = False
        self._echoed = ""
        """What was given, as the client was told it again."""

    @property
    def new(self) -> str:
        """All that was said beyond what was given."""
        return "".join(self.parts)

    @property
    def whole(self) -> str:
        """All of it, as an engine is to go on with it."""
        return self.given + self.new

    @property
    def told(self) -> str:
        """All of it, as the client knows it."""
        return (self._echoed or self.given) + self.new

    def hear(self, text: str) -> tuple[str, str]:
        """Take what an engine says.

        Returns:
            What of it goes to the client, and what of it is new.
        """
        if self._echo is None and not self._is_over:
            self.parts.append(text)
            return text, text
        new = "" if self._echo is None or self._is_over else self._echo.new_in(text)
        if new:
            self.parts.append(new)
        if self._drops_echo:
            return new, new
        self._echoed += text[: len(text) - len(new)]
        return text, new

    def restart(self) -> None:
        """Another engine says all of it, and nothing new was said yet."""
        if self._echo is not None:
            self._echo = Echo(self.given)
        self._drops_echo = bool(self._echoed)

    def go_on(self, *, is_echoed: bool, is_over: bool) -> None:
        """Another engine goes on after all that was said.

        Args:
            is_echoed: Whether it says that again.
            is_over: Whether nothing can be added, whatever it says.
        """
        self._echo = Echo(self.whole) if is_echoed else None
        self._drops_echo = True
        self._is_over = is_over
