"""Weights on their way to the far end: cut, named, remembered."""

import struct
from typing import Final

from agents.chunks import SMALLEST_TENSOR_BYTES, cut
from agents.rpc_commands import TensorData, hash_answer
from agents.rpc_protocol import Command
from supervisor.link.chunk_refs import Cutter, HashQuestion, Ref
from supervisor.link.known_tensors import KnownTensors
from supervisor.link.outbox import Outbox

_REQUEST: Final = struct.Struct("<BQ")


class WeightSender:
    """Weights of one connection: what precedes its first graph, given to the outbox by name.

    Activations go as they are, since nobody sends them twice. Taking one for the other costs time
    and nothing else: what stands by its name arrives all the same.
    """

    def __init__(self, out: Outbox, known: KnownTensors) -> None:
        self._out = out
        self._known = known
        self._cutter: Cutter | None = None
        self._asked: HashQuestion | None = None
        self._learning: HashQuestion | None = None
        self.stores = False
        """The far end keeps chunks."""
        self.is_over = False
        """A graph has come."""
        self.whole_bytes = 0
        """Of weights that went as they are."""

    @property
    def takes_hashes(self) -> bool:
        return self.stores and not self.is_over

    def forget(self) -> None:
        """The connection has ended, perhaps in the middle of a tensor."""
        self._cutter = self._asked = self._learning = None

    # -- data ------------------------------------------------------------------------------

    def begin(self, about: TensorData) -> None:
        """Data of a tensor follows."""
        asked, self._asked = self._asked, None
        if self.takes_hashes and about.data_bytes >= SMALLEST_TENSOR_BYTES:
            self._cutter = Cutter(about.data_bytes)
            self._learning = asked if asked and asked.matches(about) else None

    def feed(self, data: memoryview) -> None:
        """Some of it, or of any other large request."""
        if self._cutter is None:
            self.count_small(len(data))
            self._out.emit_pieces(data)
            return
        for ref in self._cutter.feed(data):
            self._out.emit(ref)

    def end(self) -> None:
        """That was all of it."""
        cutter, self._cutter = self._cutter, None
        asked, self._learning = self._learning, None
        if cutter is not None and asked is not None:
            self._known.learn(asked.fnv, asked.size_bytes, cutter.names)

    def count_small(self, size_bytes: int) -> None:
        """Weights that are not cut."""
        self.whole_bytes += 0 if self.is_over else size_bytes

    # -- questions by hash -----------------------------------------------------------------

    def is_known(self, question: HashQuestion) -> bool | None:
        """Whether the far end has that tensor; ``None``: it has to be asked."""
        names = self._known.find(question.fnv, question.size_bytes)
        if names is None:
            return False
        return True if self._out.held.issuperset(names) else None

    async def ask(self, question: HashQuestion) -> bool:
        """Ask the far end about a tensor whose chunks we know.

        Raises:
            asyncio.CancelledError: The link ended meanwhile.
        """
        names = self._known.find(question.fnv, question.size_bytes) or ()
        sizes = [size_bytes for _, size_bytes in cut(question.size_bytes)]
        await self._out.ask(list(zip(names, sizes, strict=False)))
        return bool(names) and self._out.held.issuperset(names)

    def answer(self, question: HashQuestion, has_cache_flag: bool, *, is_known: bool) -> bytes:
        """What llama-server hears; if known, a SET_TENSOR of ours takes the question's place."""
        names = self._known.find(question.fnv, question.size_bytes) if is_known else None
        if names is None:
            self._asked = question
            return hash_answer(is_known=False)
        head = question.set_tensor_head(has_cache_flag=has_cache_flag)
        size_bytes = len(head) + question.size_bytes
        self._out.emit(_REQUEST.pack(Command.SET_TENSOR, size_bytes) + head)
        for name, (_, chunk_bytes) in zip(names, cut(question.size_bytes), strict=True):
            self._out.emit(Ref(name, chunk_bytes, None))
        return hash_answer(is_known=True)
