"""Writes a small llama-architecture GGUF, so that a cluster can be tried without a download.

The model recites ``SENTENCE`` whatever it is asked. Its layers are random and really computed, but
they add little to the residual stream; what is left there is the embedding of the last token, and
the output row of each token is the embedding of the token that precedes it in the sentence. So the
logits are a Markov chain over the last token. Tokens outside the chain share most of their
embedding, and that part is the output row of the first word.

Source:
    llama.cpp: ``ggml/src/gguf.cpp``, ``src/models/llama.cpp``, ``src/llama-vocab.cpp``.
"""

import math
import os
import random
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from supervisor.core.ggml_types import F32, Q8_0, tensor_bytes

SENTENCE: Final = (
    "This answer was computed just now: every layer of this small model ran on a worker in your"
    " cluster, the numbers travelled over its network, and came back as words. It recites one"
    " sentence whatever you ask, because these weights are made up; load another for real"
    " conversation."
)
"""The exact text of every answer of a reciting model; its words are distinct tokens."""

# Words that prompts are likely to hold and that random answers are made of.
COMMON_WORDS: Final = """
about after again all and because before but can change come computer could day do even family from
good hand has have hear help her here him home how idea important know language last life like look
machine make many more music name need never new next note now only or out place plan point
remember right river say sentence so song sound tell that their them then there they time told
water way we well what when where who word work world
"""

CHAT_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\\n' + (message['content'] or '') + '\\n' }}"
    "{% endfor %}"
    # Ends in a byte that is outside the chain, so that the answer starts with the first word.
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)

ALIGNMENT: Final = 32
BLOCK_ELEMENTS: Final = 32
BLOCK_BYTES: Final = 34  # one f16 scale, 32 signed bytes

CHAIN_LOGIT: Final = 60.0  # of the next word, had the layers added nothing; all others are near 0
RANDOM_LOGIT_STD: Final = 4.0
QUIET_GAIN: Final = 0.05  # what a layer adds to the residual stream, relative to an embedding
LOUD_GAIN: Final = 2.0  # the same for a model that shall depend on every layer
FOCUS_GAIN: Final = 4.0  # of its attention, which else would average all tokens away
SHARED_PART: Final = 0.75  # of the embedding of tokens outside the chain

# Random bytes become -15 .. 15: with larger quants the scales of the quiet matrices would fall
# below the normal range of f16, which some devices take for zero.
QUANTS: Final = tuple(byte // 8 if byte < 128 else -((255 - byte) // 8) for byte in range(256))
QUANT_BYTES: Final = bytes(quant & 0xFF for quant in QUANTS)
QUANT_STD: Final = math.sqrt(sum(quant * quant for quant in QUANTS) / len(QUANTS))

EMBEDDINGS: Final = "token_embd.weight"
OUTPUTS: Final = "output.weight"
UNKNOWN, BEGIN, END = 0, 1, 2
NORMAL_TYPE, UNKNOWN_TYPE, CONTROL_TYPE, BYTE_TYPE = 1, 2, 3, 6  # enum llama_token_type
FIRST_WORD_TOKEN: Final = 3 + 256  # after the control tokens and the bytes


class Tensor(NamedTuple):
    """A tensor to be written; ``scale`` is that of all its blocks, 0 means F32 ones."""

    name: str
    shape: tuple[int, ...]
    scale: float

    @property
    def type_id(self) -> int:
        return Q8_0 if self.scale else F32

    @property
    def size_bytes(self) -> int:
        return tensor_bytes(self.type_id, self.shape)


@dataclass(frozen=True, slots=True)
class Sizes:
    """The dimensions of a model; heads divide the embedding, all rows are whole blocks."""

    layers: int
    embedding: int
    feed_forward: int
    heads: int
    kv_heads: int

    def __post_init__(self) -> None:
        if min(self.layers, self.embedding, self.feed_forward, self.heads, self.kv_heads) < 1:
            raise ValueError(f"{self}: every size must be positive")
        if self.embedding % self.heads or self.heads % self.kv_heads or self.head_size % 2:
            raise ValueError(f"{self}: kv_heads must divide heads, and heads embedding evenly")
        for row in (self.embedding, self.feed_forward, self.head_size * self.kv_heads):
            if row % BLOCK_ELEMENTS:
                raise ValueError(f"{self}: a row of {row} is not a multiple of {BLOCK_ELEMENTS}")

    @property
    def head_size(self) -> int:
        return self.embedding // self.heads


def write_demo_model(
    path: Path,
    *,
    layers: int = 8,
    embedding: int = 512,
    feed_forward: int = 1024,
    heads: int = 8,
    kv_heads: int = 4,
    seed: int = 1,
    recite: bool = True,
) -> None:
    """Write the model under a temporary name and rename it; equal arguments give equal bytes.

    Args:
        recite: Answer ``SENTENCE``; otherwise plain random weights, whose incoherent words
            depend on every layer, to compare the answers of two placements.

    Raises:
        ValueError: llama.cpp has no model of these sizes.
        OSError: The file cannot be written; nothing is left behind.
    """
    sizes = Sizes(layers, embedding, feed_forward, heads, kv_heads)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with unfinished.open("wb") as file:
            _write(file, sizes, random.Random(seed), recite)
        unfinished.replace(path)
    except BaseException:  # an interrupted write must not leave gigabytes either
        unfinished.unlink(missing_ok=True)
        raise


def _write(file: BinaryIO, sizes: Sizes, rng: random.Random, recite: bool) -> None:
    tensors = list(_tensors(sizes, recite))
    file.write(_header(_metadata(sizes, recite), tensors))
    outer = _outer(sizes, rng, recite)
    for tensor in tensors:
        file.write(bytes(-file.tell() % ALIGNMENT))
        if tensor.type_id == F32:
            file.write(struct.pack("<f", 1.0) * tensor.shape[0])
        else:
            file.write(_quantised(tensor, rng, outer.get(tensor.name)))


def _tensors(sizes: Sizes, recite: bool) -> Iterator[Tensor]:
    width, vocabulary = sizes.embedding, len(_tokens())
    kv_width = sizes.head_size * sizes.kv_heads
    gain, focus = (QUIET_GAIN, 1.0) if recite else (LOUD_GAIN, FOCUS_GAIN)
    yield Tensor(EMBEDDINGS, (width, vocabulary), 1 / QUANT_STD)
    for layer in range(sizes.layers):
        block = f"blk.{layer}"
        yield Tensor(f"{block}.attn_norm.weight", (width,), 0)
        yield _matrix(f"{block}.attn_q.weight", width, width, focus)
        yield _matrix(f"{block}.attn_k.weight", width, kv_width)
        yield _matrix(f"{block}.attn_v.weight", width, kv_width)
        yield _matrix(f"{block}.attn_output.weight", width, width, gain)
        yield Tensor(f"{block}.ffn_norm.weight", (width,), 0)
        yield _matrix(f"{block}.ffn_gate.weight", width, sizes.feed_forward)
        yield _matrix(f"{block}.ffn_up.weight", width, sizes.feed_forward)
        yield _matrix(f"{block}.ffn_down.weight", sizes.feed_forward, width, gain)
    yield Tensor("output_norm.weight", (width,), 0)
    # A normalised row of the stream times an embedding is width * QUANT_STD.
    chain_gain = CHAIN_LOGIT / math.sqrt(width)
    yield _matrix(OUTPUTS, width, vocabulary, chain_gain if recite else RANDOM_LOGIT_STD)


def _matrix(name: str, inputs: int, outputs: int, gain: float = 1.0) -> Tensor:
    """Scale a random matrix so that inputs of variance 1 give outputs of ``gain`` squared."""
    return Tensor(name, (inputs, outputs), gain / (QUANT_STD * math.sqrt(inputs)))


def _quantised(tensor: Tensor, rng: random.Random, rows: bytes | None) -> bytearray:
    """Give blocks of Q8_0: ``rows``, or random bytes, with the scales written over them."""
    blocks = bytearray(rows or _random_bytes(rng, tensor.size_bytes))
    scale, count = struct.pack("<e", tensor.scale), len(blocks) // BLOCK_BYTES
    blocks[0::BLOCK_BYTES] = scale[:1] * count
    blocks[1::BLOCK_BYTES] = scale[1:] * count
    return blocks


def _random_bytes(rng: random.Random, count: int) -> bytes:
    return rng.randbytes(count).translate(QUANT_BYTES)


def _outer(sizes: Sizes, rng: random.Random, recite: bool) -> dict[str, bytes]:
    """Make the token embeddings and the output matrix, without their scales."""
    row_bytes = sizes.embedding // BLOCK_ELEMENTS * BLOCK_BYTES
    embeddings = [_random_bytes(rng, row_bytes) for _ in _tokens()]
    outputs = [bytes(row_bytes) for _ in _tokens()]  # logits of exactly 0
    if recite:
        _chain(embeddings, outputs, _random_bytes(rng, row_bytes))
    else:  # only words: never the end, a byte that may be half a character, or a prefix
        for token in range(FIRST_WORD_TOKEN, FIRST_WORD_TOKEN + len({*_words()})):
            outputs[token] = _random_bytes(rng, row_bytes)
    return {EMBEDDINGS: b"".join(embeddings), OUTPUTS: b"".join(outputs)}


def _chain(embeddings: list[bytes], outputs: list[bytes], shared: bytes) -> None:
    """Let each word of the sentence follow the one before it, and the first all other tokens."""
    chain = range(FIRST_WORD_TOKEN, FIRST_WORD_TOKEN + len(SENTENCE.split()))
    shared_bytes = int(len(shared) * SHARED_PART)
    for token in set(range(len(embeddings))).difference(chain):
        embeddings[token] = shared[:shared_bytes] + embeddings[token][shared_bytes:]
    outputs[chain[0]] = shared
    for token, following in zip(chain, (*chain[1:], END), strict=True):
        outputs[following] = embeddings[token]


@cache
def _tokens() -> tuple[str, ...]:
    """The vocabulary: control tokens, bytes, words (the sentence first), prefixes of words.

    SentencePiece merges pairs, so a word is found in a prompt only if its prefixes are tokens too.
    Those of the sentence are: a prompt that ends within it is an answer to be continued.
    """
    words = _words()
    prefixes = [word[:end] for word in words for end in range(1, len(word))]
    controls = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    return tuple(dict.fromkeys([*controls, *words, *prefixes]))


def _words() -> list[str]:
    first, *others = SENTENCE.split()
    return [first, *(f"\u2581{word}" for word in (*others, *COMMON_WORDS.split()))]


def _metadata(sizes: Sizes, recite: bool) -> dict[str, bytes]:
    tokens = _tokens()
    count = len(tokens)
    types = [UNKNOWN_TYPE, CONTROL_TYPE, CONTROL_TYPE, *[BYTE_TYPE] * 256]
    types += [NORMAL_TYPE] * (count - len(types))
    # A longer piece wins; among equals the earlier one.
    scores = [len(token) - index / count for index, token in enumerate(tokens)]
    return {
        "general.architecture": _text("llama"),
        "general.name": _text("Demo (recites one sentence)" if recite else "Demo (random words)"),
        "general.file_type": _u32(7),  # LLAMA_FTYPE_MOSTLY_Q8_0
        "llama.context_length": _u32(4096),
        "llama.embedding_length": _u32(sizes.embedding),
        "llama.block_count": _u32(sizes.layers),
        "llama.feed_forward_length": _u32(sizes.feed_forward),
        "llama.attention.head_count": _u32(sizes.heads),
        "llama.attention.head_count_kv": _u32(sizes.kv_heads),
        "llama.attention.layer_norm_rms_epsilon": struct.pack("<If", 6, 1e-5),
        "llama.rope.dimension_count": _u32(sizes.head_size),
        "tokenizer.ggml.model": _text("llama"),
        "tokenizer.ggml.tokens": _array(8, count, map(_string, tokens)),
        "tokenizer.ggml.scores": _array(6, count, [struct.pack(f"<{count}f", *scores)]),
        "tokenizer.ggml.token_type": _array(5, count, [struct.pack(f"<{count}i", *types)]),
        "tokenizer.ggml.unknown_token_id": _u32(UNKNOWN),
        "tokenizer.ggml.bos_token_id": _u32(BEGIN),
        "tokenizer.ggml.eos_token_id": _u32(END),
        "tokenizer.ggml.add_bos_token": struct.pack("<I?", 7, True),
        "tokenizer.chat_template": _text(CHAT_TEMPLATE),
    }


def _header(metadata: dict[str, bytes], tensors: Sequence[Tensor]) -> bytes:
    header = bytearray(struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata)))
    for key, value in metadata.items():
        header += _string(key) + value
    offset = 0
    for tensor in tensors:
        dimensions = len(tensor.shape)
        layout = f"<I{dimensions}QIQ"
        header += _string(tensor.name) + struct.pack(
            layout, dimensions, *tensor.shape, tensor.type_id, offset
        )
        offset += tensor.size_bytes + -tensor.size_bytes % ALIGNMENT
    return bytes(header)


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _text(text: str) -> bytes:
    return struct.pack("<I", 8) + _string(text)


def _u32(value: int) -> bytes:
    return struct.pack("<II", 4, value)


def _array(element_type: int, count: int, elements: Iterable[bytes]) -> bytes:
    return struct.pack("<IIQ", 9, element_type, count) + b"".join(elements)
