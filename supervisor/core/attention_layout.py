"""Which layers of a model keep what of the past: attention, sliding windows, recurrent state.

Source:
    llama.cpp 0c1e570: ``src/llama-model.cpp`` ``load_hparams``, ``load_swa_pattern`` and
    ``create_memory``; ``src/llama-hparams.cpp``; ``load_arch_hparams`` of each ``src/models/``.
"""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from supervisor.core.entities import FrozenModel
from supervisor.errors import ModelBroken


class Sliding(NamedTuple):
    """The pattern of an architecture whose file does not give one."""

    period: int
    default_window: int = 0
    dense_first: bool = False


SLIDING: Final = {
    "afmoe": Sliding(4),
    "cohere2": Sliding(4),
    "cohere2moe": Sliding(4, dense_first=True),
    "exaone-moe": Sliding(4, 128),
    "exaone4": Sliding(4),
    "gemma-embedding": Sliding(6),
    "gemma2": Sliding(2, 4096),
    "gemma3": Sliding(6),
    "gemma3n": Sliding(5),
    "gpt-oss": Sliding(2),
    "laguna": Sliding(4, dense_first=True),
    "llama4": Sliding(4, 8192),
    "mellum": Sliding(4),
    "modern-bert": Sliding(3, dense_first=True),
    "muse-glimmer": Sliding(4),
    "olmo2": Sliding(4),
    "plamo3": Sliding(8),
    "smallthinker": Sliding(4, 4096, dense_first=True),
}
INTERVAL_HYBRIDS: Final = ("qwen3next", "qwen35", "qwen35moe", "qwen4exp", "minimax-01")
WITHOUT_CACHE: Final = ("mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7")
EXTRA_CACHES: Final = ("deepseek32", "deepseek4", "glm-dsa", "dots3note", "qwen4exp", "minimax-m3")
PATTERN: Final = "attention.sliding_window_pattern"
RECURRENT_TENSORS: Final = (".ssm_", ".time_mix_", ".shortconv.")


class AttentionLayout(FrozenModel):
    """The header's numbers about attention, one per layer where they differ."""

    architecture: str
    n_layers: int
    n_run: int
    embedding: int
    heads: tuple[int, ...]
    heads_kv: tuple[int, ...]
    feed_forward: tuple[int, ...]
    key_length: int
    value_length: int
    key_length_sliding: int
    value_length_sliding: int
    is_latent: bool
    sliding: tuple[bool, ...]
    window_tokens: int
    recurrent: tuple[bool, ...]
    first_shared: int
    state: dict[str, int]
    notes: tuple[str, ...] = ()

    @property
    def last_cut(self) -> int:
        """Layers that read the cache of earlier ones must be on the device of those."""
        return self.n_layers if self.first_shared >= self.n_layers else self.first_shared - 2

    def cached(self, layer: int, *, recurrent: bool) -> tuple[int, int]:
        """Elements of keys and of values that a layer keeps per token."""
        if layer >= self.first_shared or (recurrent and self.architecture != "falcon-h1"):
            return 0, 0
        heads = self.heads_kv[layer]
        if self.sliding[layer]:
            return heads * self.key_length_sliding, heads * self.value_length_sliding
        return heads * self.key_length, 0 if self.is_latent else heads * self.value_length


def number(metadata: Mapping[str, object], key: str, default: int = 0) -> int:
    """A non-negative number, or ``default`` where the key is missing or something else."""
    value = metadata.get(key)
    return value if type(value) is int and value >= 0 else default


def layout_of(metadata: Mapping[str, object]) -> AttentionLayout:
    """Collect what ``cached`` and ``state_elements`` need.

    Raises:
        ModelBroken: No architecture or block count, or an array of the wrong length.
    """
    arch = metadata.get("general.architecture")
    if not isinstance(arch, str):
        raise ModelBroken("the model has no general.architecture; give a file for llama.cpp")
    n_layers = number(metadata, f"{arch}.block_count")
    if n_layers == 0:
        raise ModelBroken(f"the model has no {arch}.block_count; give a language model")
    n_run = n_layers - min(number(metadata, f"{arch}.nextn_predict_layers"), n_layers - 1)
    base = _Base(arch, n_layers, n_run)
    heads = per_layer(metadata, base, "attention.head_count", 0)
    embedding = number(metadata, f"{arch}.embedding_length")
    default_length = embedding // heads[0] if heads[0] else 0
    key = number(metadata, f"{arch}.attention.key_length", default_length)
    value = number(metadata, f"{arch}.attention.value_length", default_length)
    heads_kv = per_layer(metadata, base, "attention.head_count_kv", None) or heads
    sliding, window = _sliding(metadata, base)
    return AttentionLayout(
        architecture=arch,
        n_layers=n_layers,
        n_run=n_run,
        embedding=embedding,
        heads=heads,
        heads_kv=(0,) * n_layers if arch in WITHOUT_CACHE else heads_kv,
        feed_forward=per_layer(metadata, base, "feed_forward_length", 0),
        key_length=key,
        value_length=value,
        key_length_sliding=number(metadata, f"{arch}.attention.key_length_swa", key),
        value_length_sliding=number(metadata, f"{arch}.attention.value_length_swa", value),
        is_latent=number(metadata, f"{arch}.attention.key_length_mla") > 0,
        sliding=sliding,
        window_tokens=window,
        recurrent=_recurrent(metadata, base),
        first_shared=_first_shared(metadata, base),
        state=_state(metadata, arch, heads[0], key),
        notes=_notes(arch),
    )


class _Base(NamedTuple):
    architecture: str
    n_layers: int
    n_run: int


def per_layer(
    metadata: Mapping[str, object], base: "_Base | AttentionLayout", key: str, default: int | None
) -> tuple[int, ...]:
    """A key that holds one number, or one per layer; empty if absent without a default."""
    name = f"{base.architecture}.{key}"
    value = metadata.get(name)
    if isinstance(value, tuple | list):
        if len(value) < base.n_layers or not all(isinstance(item, int) for item in value):
            raise ModelBroken(
                f"{name} has {len(value)} entries for {base.n_layers} layers, or no whole numbers"
            )
        return tuple(max(0, item) for item in value[: base.n_layers])
    if type(value) is int and value >= 0:
        return (value,) * base.n_layers
    return () if default is None else (default,) * base.n_layers


def _sliding(metadata: Mapping[str, object], base: _Base) -> tuple[tuple[bool, ...], int]:
    arch = base.architecture
    none = (False,) * base.n_layers, 0
    known = SLIDING.get(arch)
    given = metadata.get(f"{arch}.{PATTERN}")
    window = number(metadata, f"{arch}.attention.sliding_window", known[1] if known else 0)
    window = 8192 if arch == "llama4" and window else window
    if window == 0 or arch == "phi3":  # llama.cpp gives phi3 a full cache
        return none
    if isinstance(given, tuple | list):
        return tuple(bool(value) for value in per_layer(metadata, base, PATTERN, None)), window
    if known is None:
        return none
    period = given if type(given) is int else known.period
    return tuple(_slides(i, period, base, known.dense_first) for i in range(base.n_layers)), window


def _slides(layer: int, period: int, base: _Base, dense_first: bool) -> bool:
    if layer >= base.n_run:
        return False
    if period <= 0:
        return True
    return layer % period != 0 if dense_first else layer % period < period - 1


def _recurrent(metadata: Mapping[str, object], base: _Base) -> tuple[bool, ...]:
    """The layers that the header calls recurrent; tensors tell the others."""
    if base.architecture not in INTERVAL_HYBRIDS:
        return (False,) * base.n_layers
    given = per_layer(metadata, base, "attention.recurrent_layers", None)
    interval = number(metadata, f"{base.architecture}.full_attention_interval", 4) or 1
    return tuple(
        bool(given[i]) if given else i < base.n_run and (i + 1) % interval != 0
        for i in range(base.n_layers)
    )


def is_recurrent(layout: AttentionLayout, layer: int, names: Sequence[str]) -> bool:
    """Whether a layer keeps a state of fixed size."""
    if layout.architecture in INTERVAL_HYBRIDS:
        return layout.recurrent[layer]
    return any(part in name for name in names for part in RECURRENT_TENSORS)


def _first_shared(metadata: Mapping[str, object], base: _Base) -> int:
    if base.architecture == "gemma3n":
        return min(20, base.n_layers)
    shared = number(metadata, f"{base.architecture}.attention.shared_kv_layers")
    return max(2, base.n_layers - shared) if shared else base.n_layers


def _state(
    metadata: Mapping[str, object], arch: str, heads: int, key_length: int
) -> dict[str, int]:
    names = {
        "wkv": "wkv.head_size",
        "shift": "token_shift_count",
        "shortconv": "shortconv.l_cache",
        "kda": "kda.head_dim",
        "conv": "ssm.conv_kernel",
        "inner": "ssm.inner_size",
        "size": "ssm.state_size",
        "groups": "ssm.group_count",
    }
    state = {short: number(metadata, f"{arch}.{name}") for short, name in names.items()}
    state["heads"] = heads
    state["linear"] = key_length if arch == "minimax-01" else 0
    return state


def state_elements(layout: AttentionLayout) -> int:
    """Elements of the convolution and recurrent state of one layer and sequence.

    Source:
        ``llama_hparams::n_embd_r`` and ``n_embd_s``.
    """
    s, width = layout.state, layout.embedding
    if s["wkv"]:
        return (s["shift"] or 2) * width + width * s["wkv"]
    if s["shortconv"]:
        return width * (s["shortconv"] - 1) + s["size"] * s["inner"]
    if s["kda"]:
        inner = s["heads"] * s["kda"]
        return 3 * (s["conv"] - 1 if s["conv"] else 3) * inner + s["kda"] * inner
    conv = max(0, s["conv"] - 1) * (s["inner"] + 2 * s["groups"] * s["size"])
    if s["linear"]:
        return conv + s["linear"] ** 2 * s["heads"]
    return conv + s["size"] * s["inner"]


def _notes(arch: str) -> tuple[str, ...]:
    if arch in EXTRA_CACHES:
        return (f"{arch} models keep extra caches that are not counted; let the engine confirm",)
    return ()
