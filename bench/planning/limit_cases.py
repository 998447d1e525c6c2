"""The launches of ``memory_limits.py``: shapes of real models, small enough to be launched."""

from dataclasses import dataclass, replace

from shapes import MAMBA, Shape

FITTING_SHARE = 0.97
"""Of the limit, what the prediction is."""

TOO_SMALL_SHARE = 1 / 0.85


@dataclass(frozen=True)
class Case:
    """One launch; ``layers`` of each worker are repeating layers, the last has the output too."""

    name: str
    shape: Shape
    ctx_tokens: int
    ubatch: int
    kv_type: str
    layers: tuple[int, ...]
    host_layers: int = 0
    output_on_host: bool = False
    share: float = FITTING_SHARE

    @property
    def settings(self) -> str:
        where = "host" if self.output_on_host else "worker"
        parts = "+".join(map(str, self.layers))
        host = f"{self.host_layers} on the host, " if self.host_layers else ""
        return (
            f"ctx {self.ctx_tokens}, ubatch {self.ubatch}, {self.kv_type}, "
            f"{host}{parts} layers, output on {where}"
        )


GQA = Shape("dense, GQA", "llama", 12, 1024, 2816, 16, 4, 64, 32000)
NO_GQA = Shape("dense, no GQA", "llama", 8, 1024, 2816, 16, 16, 64, 32000)
WIDE = Shape("dense, wide feed-forward", "llama", 6, 1536, 8192, 12, 4, 128, 64000)
VOCABULARY = Shape(
    "tiny body, 152k vocabulary", "qwen2", 12, 512, 2560, 8, 2, 64, 151936, is_tied=True
)
EXPERTS = Shape(
    "MoE",
    "qwen3moe",
    12,
    768,
    2048,
    12,
    4,
    64,
    48000,
    experts=32,
    expert_ff=256,
    keys={"expert_count": 32, "expert_used_count": 8, "expert_feed_forward_length": 256},
)
WINDOW = Shape(
    "SWA (gemma 3)",
    "gemma3",
    12,
    1024,
    4096,
    4,
    2,
    256,
    64000,
    is_tied=True,
    keys={"attention.sliding_window": 512},
)
HYBRID = Shape(
    "hybrid (granite 4, Mamba-2)",
    "granitehybrid",
    8,
    2048,
    3072,
    16,
    4,
    64,
    32000,
    is_tied=True,
    keys=dict(MAMBA),
)
LATENT = Shape(
    "MLA and MoE (deepseek 2)",
    "deepseek2",
    27,  # with any other number, the engine expects the large variant
    512,
    2816,
    4,
    1,
    576,
    48000,
    experts=16,
    expert_ff=256,
    keys={
        "expert_count": 16,
        "expert_used_count": 4,
        "expert_shared_count": 2,
        "expert_feed_forward_length": 256,
        "leading_dense_block_count": 1,
        "attention.kv_lora_rank": 512,
        "attention.key_length_mla": 192,
        "attention.value_length_mla": 128,
        "rope.dimension_count": 64,
    },
)


def _case(
    shape: Shape, ctx_tokens: int, ubatch: int, kv_type: str, *layers: int, on_host: bool = False
) -> Case:
    host_layers = shape.layers - sum(layers)
    return Case(
        shape.name, shape, ctx_tokens, ubatch, kv_type, layers, host_layers, output_on_host=on_host
    )


FITTING = (
    _case(GQA, 2048, 512, "f16", 12),
    _case(GQA, 4096, 256, "q8_0", 6, 6),
    _case(GQA, 8192, 512, "f16", 4, 4, 4, on_host=True),
    _case(NO_GQA, 8192, 128, "f16", 4, 4),
    _case(WIDE, 2048, 512, "q8_0", 3, 3, on_host=True),
    _case(VOCABULARY, 1024, 128, "f16", 12),
    _case(EXPERTS, 2048, 512, "f16", 5, 7),
    _case(WINDOW, 8192, 256, "f16", 6, 6),
    _case(HYBRID, 4096, 256, "f16", 4, 4, on_host=True),
    _case(LATENT, 2048, 256, "f16", 8, 8, 8),
)
TOO_SMALL = replace(FITTING[1], name=f"{FITTING[1].name}, too small a limit", share=TOO_SMALL_SHARE)
CASES = (*FITTING, TOO_SMALL)
