"""Writes a GGUF that recites: after each token that it knows comes exactly one other.

Its one layer adds nothing, so what counts is the last token alone. A song begins after its opening
token; one of them after any token that belongs to no song. Every token may stand in one place only,
bytes of characters that are no token among them.

Source:
    llama.cpp: ``ggml/src/gguf.cpp``, ``src/models/llama.cpp``, ``src/llama-vocab.cpp``.
"""

import random
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

from made_gguf import BOOL, FLOAT32, INT32, STRING, array, pair, text, u32

WIDTH = 256
INNER = 32
LOGIT = 60.0
UNKNOWN, CONTROL, BYTE, NORMAL = 2, 3, 6, 1
END = "</s>"

TEMPLATE = """\
{%- if tools %}{{ '<|system|>' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{% endif %}
{%- for message in messages %}{{- '<|' + message.role + '|>\n' }}
{%- if message.reasoning_content %}
{{- '<think>\n' + message.reasoning_content + '\n</think>\n\n' }}
{%- endif %}
{{- message.content or '' }}
{%- for call in message.tool_calls or [] %}
{{- '<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- (call.function.arguments | tojson) + '}\n</tool_call>' }}
{%- endfor %}{{- '<|end|>\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{{ song }}{% endif %}"""
"""A chat template with reasoning and tools; ``song`` of chat_template_kwargs opens a song."""


def as_bytes(characters: str) -> list[str]:
    """The tokens of characters that are no tokens themselves."""
    return [f"<0x{byte:02X}>" for byte in characters.encode()]


def as_tokens(pieces: Sequence[str]) -> list[str]:
    """Pieces of text as this vocabulary spells them."""
    return [piece.replace(" ", "\u2581") for piece in pieces]


def write_reciting_model(
    path: Path, songs: Mapping[str, Sequence[str]], template: str, *, seed: int = 1
) -> None:
    """Write the model.

    Args:
        path: Of the file.
        songs: Tokens by the opening token; empty: any token that belongs to none.
        template: Of chats, in Jinja.
        seed: Of its embeddings.
    """
    tokens = _vocabulary(songs)
    embeddings, outputs = _chain(tokens, songs, random.Random(seed))
    tensors = {
        "token_embd.weight": ((WIDTH, len(tokens)), embeddings),
        "output.weight": ((WIDTH, len(tokens)), outputs),
        "output_norm.weight": ((WIDTH,), [1.0] * WIDTH),
        **_layer("blk.0"),
    }
    metadata = _metadata(tokens, template)
    data = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata)) + b"".join(metadata)
    offset = 0
    for name, (shape, values) in tensors.items():
        data += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        data += struct.pack("<IQ", 0, offset)
        offset += 4 * len(values) + -4 * len(values) % 32
    data += bytes(-len(data) % 32)
    for _, values in tensors.values():
        raw = struct.pack(f"<{len(values)}f", *values)
        data += raw + bytes(-len(raw) % 32)
    path.write_bytes(data)


def _vocabulary(songs: Mapping[str, Sequence[str]]) -> list[str]:
    """All bytes, the pieces, and their beginnings, without which no prompt would find them."""
    pieces = [token for song in songs.values() for token in song if not token.startswith("<0x")]
    pieces += [opening for opening in songs if opening and not opening.startswith("<0x")]
    beginnings = [piece[:end] for piece in pieces for end in range(1, len(piece))]
    every_byte = [f"<0x{byte:02X}>" for byte in range(256)]
    return list(dict.fromkeys(["<unk>", "<s>", END, *every_byte, *pieces, *beginnings]))


def _chain(
    tokens: Sequence[str], songs: Mapping[str, Sequence[str]], rng: random.Random
) -> tuple[list[float], list[float]]:
    """Embeddings, and output rows that each hold the embedding of the token before."""
    numbers = {token: number for number, token in enumerate(tokens)}
    outside = _signs(rng)
    before: dict[str, list[float]] = {}
    after = [[0.0] * WIDTH for _ in tokens]
    for opening, song in songs.items():
        for token, following in zip([opening, *song], [*song, END], strict=True):
            assert token not in before, f"{token!r} stands in two places"
            before[token] = _signs(rng) if token else outside
            row = zip(after[numbers[following]], before[token], strict=True)
            after[numbers[following]] = [sum_ + sign * LOGIT / WIDTH for sum_, sign in row]
    embeddings = [value for token in tokens for value in before.get(token, outside)]
    return embeddings, [value for row in after for value in row]


def _signs(rng: random.Random) -> list[float]:
    return [rng.choice((-1.0, 1.0)) for _ in range(WIDTH)]


def _layer(block: str) -> dict[str, tuple[tuple[int, ...], list[float]]]:
    square = (WIDTH, WIDTH)
    shapes = {f"attn_{part}": square for part in ("q", "k", "v", "output")}
    shapes |= {"ffn_gate": (WIDTH, INNER), "ffn_up": (WIDTH, INNER), "ffn_down": (INNER, WIDTH)}
    tensors: dict[str, tuple[tuple[int, ...], list[float]]] = {
        f"{block}.{name}.weight": (shape, [0.0] * (shape[0] * shape[1]))
        for name, shape in shapes.items()
    }
    norms = {f"{block}.{name}_norm.weight": ((WIDTH,), [1.0] * WIDTH) for name in ("attn", "ffn")}
    return {**tensors, **norms}


def _metadata(tokens: Sequence[str], template: str) -> list[bytes]:
    count = len(tokens)
    # A longer piece wins; among equals the earlier one.
    scores = [len(token) - number / count for number, token in enumerate(tokens)]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256]
    types += [NORMAL] * (count - len(types))
    return [
        pair("general.architecture", STRING, text("llama")),
        u32("llama.context_length", 4096),
        u32("llama.embedding_length", WIDTH),
        u32("llama.block_count", 1),
        u32("llama.feed_forward_length", INNER),
        u32("llama.attention.head_count", 4),
        u32("llama.attention.head_count_kv", 4),
        pair("llama.attention.layer_norm_rms_epsilon", FLOAT32, struct.pack("<f", 1e-5)),
        u32("llama.rope.dimension_count", WIDTH // 4),
        pair("tokenizer.ggml.model", STRING, text("llama")),
        array("tokenizer.ggml.tokens", STRING, count, b"".join(map(text, tokens))),
        array("tokenizer.ggml.scores", FLOAT32, count, struct.pack(f"<{count}f", *scores)),
        array("tokenizer.ggml.token_type", INT32, count, struct.pack(f"<{count}i", *types)),
        u32("tokenizer.ggml.unknown_token_id", 0),
        u32("tokenizer.ggml.bos_token_id", 1),
        u32("tokenizer.ggml.eos_token_id", 2),
        pair("tokenizer.ggml.add_bos_token", BOOL, b"\1"),
        pair("tokenizer.chat_template", STRING, text(template)),
    ]
