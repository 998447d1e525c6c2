"""How fast a placement is: seconds per token, per prompt and to load, each a plain sum.

Source:
    planning.md 3, measured on llama.cpp 0c1e570: one blocking round trip per worker and token,
    everything else one-way; ten splits over two workers predicted with 3 % mean error.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Final

from pydantic import Field

from supervisor.core.entities import FrozenModel
from supervisor.core.memory import F32_BYTES, Run, kv_cells, kv_token_bytes, padded
from supervisor.core.model_shape import LayerShape, ModelShape, Weights

HEADER_BYTES: Final = 314  # of one SET_TENSOR
REPLY_BYTES: Final = 8
RECOMPUTE_AND_GET_BYTES: Final = 334
GRAPH_BYTES_PER_LAYER: Final = 13_000  # sent again with every ubatch of a prompt
SAMPLED_BYTES: Final = 516  # what --backend-sampling leaves of the logits
MEASURED_TOKENS: Final = 512
"""Devices are measured with this many tokens at once (``agents/measure.py``)."""

HALF_SPEED_TOKENS: Final = 8
"""With so few a device has half its speed. llama-bench, one x86-64 core, 1024 tokens in ubatches of
512 and 128: 418 and 445 ms, 410 and 427 ms."""

VALUE_ROTATION: Final = 64
"""Side of the Hadamard matrix for quantised values (``llama_kv_cache::build_input_v_rot``)."""


class Output(StrEnum):
    """Where the output layer is computed, and what of it crosses the network."""

    LAST = "last device"
    HOST = "main host"
    SAMPLED = "last device, sampled there"


class DeviceSpeed(FrozenModel):
    """What a device computes, as measured through its own rpc-server."""

    decode_bytes_per_s: float = Field(gt=0, description="weights read with a batch of one")
    decode_by_type: dict[str, float] = Field(
        default_factory=dict, description="the same, by ggml type, where it was measured"
    )
    prefill_flops: float = Field(gt=0)
    cache_bytes_per_s: float = Field(
        default=0.0, ge=0, description="keys and values read for one token; 0: as weights are"
    )
    attention_flops: float = Field(
        default=0.0, ge=0, description="of one token, over a cache that is near; 0: no limit"
    )
    prefill_attention_flops: float = Field(default=0.0, ge=0, description="0: as prefill_flops")
    layer_overhead_s: float = Field(default=0.0, ge=0)
    is_guess: bool = False

    def rate(self, ggml_type: str) -> float:
        return self.decode_by_type.get(ggml_type) or self.decode_bytes_per_s


class LinkSpeed(FrozenModel):
    """The path between the main host and a device; all zeros: the main host itself."""

    rtt_p50_s: float = Field(default=0.0, ge=0)
    rtt_p90_s: float = Field(default=0.0, ge=0)
    up_bytes_per_s: float = Field(default=0.0, ge=0, description="to the device; 0: no limit")
    down_bytes_per_s: float = Field(default=0.0, ge=0)
    overhead_s: float = Field(default=0.0, ge=0, description="fixed, per token, beyond the trip")
    is_guess: bool = False

    @property
    def is_local(self) -> bool:
        return self.rtt_p50_s == 0 and self.up_bytes_per_s == 0 and self.down_bytes_per_s == 0

    @property
    def rtt_s(self) -> float:
        """The mean round trip: what counts for tokens per second.

        Half of all trips take about the median, most others lie between it and the ninth decile.
        """
        return 0.7 * self.rtt_p50_s + 0.3 * max(self.rtt_p90_s, self.rtt_p50_s)

    def sending_s(self, count_bytes: float) -> float:
        return count_bytes / self.up_bytes_per_s if self.up_bytes_per_s else 0.0

    def receiving_s(self, count_bytes: float) -> float:
        return count_bytes / self.down_bytes_per_s if self.down_bytes_per_s else 0.0


class Workload(FrozenModel):
    """One request, and how often the model is loaded for it."""

    prompt_tokens: int = Field(default=1000, ge=1)
    generated_tokens: int = Field(default=300, ge=0)
    users: int = Field(default=1, ge=1, description="served at once, in one batch")

    @property
    def depth_tokens(self) -> int:
        """Tokens in the cache, on average, while an answer is generated."""
        return self.prompt_tokens + self.generated_tokens // 2


@dataclass(frozen=True)
class SpeedModel:
    """The costs of one model with one set of settings; every method is a formula of section 3."""

    shape: ModelShape
    run: Run
    work: Workload

    @cached_property
    def depth(self) -> int:
        return min(self.work.depth_tokens, self.run.cells)

    @cached_property
    def ubatches(self) -> int:
        """Ubatches of a prompt."""
        return -(-self.prompt // self.run.batch_tokens)

    @cached_property
    def prompt(self) -> int:
        return min(self.work.prompt_tokens, self.run.cells)

    @cached_property
    def ubatch_tokens(self) -> float:
        """Tokens of a prompt's ubatch, on average."""
        return self.prompt / self.ubatches

    @cached_property
    def batch_factor(self) -> float:
        """What fewer tokens at once than were measured with cost: 5 % more with 128."""
        return (1 + HALF_SPEED_TOKENS / self.ubatch_tokens) / (
            1 + HALF_SPEED_TOKENS / MEASURED_TOKENS
        )

    @cached_property
    def prompt_depth(self) -> float:
        """Tokens that a prompt's token attends to, on average."""
        return (self.prompt + self.ubatch_tokens) / 2

    def decode_layer_s(
        self, layer: LayerShape, speed: DeviceSpeed, cache_bytes: float | None = None
    ) -> float:
        """One layer, one token of every user; ``cache_bytes`` if they are known already."""
        cache = self.cache_bytes(layer) if cache_bytes is None else cache_bytes
        return (
            self._weights_s(layer, speed)
            + cache / (speed.cache_bytes_per_s or speed.decode_bytes_per_s)
            + self._attention_s(layer, speed)
            + (speed.layer_overhead_s if layer.size_bytes else 0.0)
        )

    def _attention_s(self, layer: LayerShape, speed: DeviceSpeed) -> float:
        """One step of each query head for each position, beside reading the cache.

        Source:
            ``bench/planning/attention_probe.py``: on processors, ggml walks over the cache once
            per query head. 3000 tokens deep, a token took three times as long as reading does.
        """
        if not speed.attention_flops:
            return 0.0
        positions = min(self.depth, kv_cells(layer, self.run)) * self.work.users
        return 4 * layer.attention_elements * positions / speed.attention_flops

    def cache_bytes(self, layer: LayerShape) -> float:
        """What a layer reads of its caches and states, one token of every user."""
        users = self.work.users
        depth = min(self.depth, kv_cells(layer, self.run))
        cache = kv_token_bytes(layer, self.run.kv_type) * depth * users
        return cache + 2 * F32_BYTES * layer.state_elements * users

    def output_s(self, speed: DeviceSpeed) -> float:
        """The output layer, one token of every user."""
        return self._weights_s(self.shape.output, speed)

    def _weights_s(self, weights: Weights, speed: DeviceSpeed) -> float:
        reading = sum(count / speed.rate(name) for name, count in weights.reads)
        if self.work.users == 1:
            return reading
        return max(reading, 2 * weights.active_elements * self.work.users / speed.prefill_flops)

    def decode_up_bytes(self, *, is_last: bool) -> int:
        """What a worker is sent per token.

        Source:
            planning.md 3.1: a capture of 4484 bytes for 512 elements and 256 cells is matched
            to the byte. The rotation of quantised caches is read in ``llama-kv-cache.cpp``.
        """
        return self._decode_up_bytes + (HEADER_BYTES if is_last else 0)

    @cached_property
    def _decode_up_bytes(self) -> int:
        users = self.work.users
        masks = [min(padded(self.depth), cells) for cells in self._mask_cells]
        sets = 5 + 3 * (len(masks) - 1)
        rotation = self._rotation_bytes
        return (
            HEADER_BYTES * (sets + (2 if rotation else 0))
            + F32_BYTES * self.shape.embedding * users
            + 20 * users
            + sum(2 * cells * users for cells in masks)
            + RECOMPUTE_AND_GET_BYTES
            + rotation
        )

    def decode_down_bytes(self, output: Output | None) -> int:
        """What a worker answers per token; ``output`` only for the last one."""
        users = self.work.users
        if output is Output.LAST:
            return REPLY_BYTES + F32_BYTES * self.shape.vocabulary * users
        if output is Output.SAMPLED:
            return SAMPLED_BYTES * users
        return REPLY_BYTES + F32_BYTES * self.shape.embedding * users

    @cached_property
    def _mask_cells(self) -> tuple[int, ...]:
        sliding = {kv_cells(layer, self.run) for layer in self.shape.layers if layer.window_tokens}
        return (self.run.cells, *sliding)

    @cached_property
    def _rotation_bytes(self) -> int:
        length = self.shape.head_length
        if self.run.kv_type in {"f32", "f16", "bf16"} or length % VALUE_ROTATION or not length:
            return 0
        side = length & -length  # the largest power of two that divides it
        return F32_BYTES * (side**2 + VALUE_ROTATION**2)

    def hop_s(self, link: LinkSpeed, output: Output | None = None) -> float:
        """The network's part of one token, for one worker; ``output`` only for the last."""
        if link.is_local:
            return 0.0
        up = self.decode_up_bytes(is_last=output is not None)
        down = self.decode_down_bytes(output)
        return link.rtt_s + link.overhead_s + link.sending_s(up) + link.receiving_s(down)

    def prefill_layer_s(self, layer: LayerShape, speed: DeviceSpeed, link: LinkSpeed) -> float:
        """One layer, one ubatch of a prompt, and its part of the graph on the wire."""
        depth = min(self.prompt_depth, layer.window_tokens or self.prompt_depth)
        attention = 4 * layer.attention_elements * self.ubatch_tokens * depth
        matrices = 2 * layer.active_elements * self.ubatch_tokens
        graph = GRAPH_BYTES_PER_LAYER if layer.size_bytes else 0
        return (
            self.batch_factor * matrices / speed.prefill_flops
            + attention / (speed.prefill_attention_flops or speed.prefill_flops)
            + link.sending_s(graph)
        )

    def prefill_hop_s(self, link: LinkSpeed, *, is_last: bool) -> float:
        """The network's part of one ubatch, for one worker; the last one sends nothing back."""
        if link.is_local:
            return 0.0
        hidden = F32_BYTES * self.shape.embedding * self.ubatch_tokens
        up = hidden + 2 * padded(round(self.prompt_depth)) * self.ubatch_tokens
        return link.rtt_s + link.sending_s(up) + (0.0 if is_last else link.receiving_s(hidden))

    def prefill_s(self, others_s: float, last_s: float) -> float:
        """A whole prompt: the last stage works while the others compute the next ubatch."""
        period = max(last_s, others_s)
        return others_s + last_s + (self.ubatches - 1) * period

    def load_s(self, size_bytes: float, link: LinkSpeed, disk_bytes_per_s: float) -> float:
        """Weights go out one worker after the other, no faster than the main host reads them."""
        reading = size_bytes / disk_bytes_per_s if disk_bytes_per_s else 0.0
        return max(reading, link.sending_s(size_bytes))


@dataclass(frozen=True)
class Stage:
    """The layers ``first`` to ``end`` (not included) on one device."""

    speed: DeviceSpeed
    link: LinkSpeed
    first: int
    end: int
    cached: frozenset[int] = frozenset()


class StageTimes(FrozenModel):
    """Where the time of one stage goes."""

    compute_s: float = Field(description="per token")
    hop_s: float = Field(description="per token")
    prefill_s: float = Field(description="per ubatch of a prompt")
    load_s: float


class Times(FrozenModel):
    """Predicted times of a placement."""

    token_s: float
    prompt_s: float
    load_s: float
    output_s: float = Field(description="per token, computing only")
    stages: tuple[StageTimes, ...]


def predict(
    model: SpeedModel,
    stages: Sequence[Stage],
    output: Output,
    host: DeviceSpeed,
    *,
    token_overhead_s: float = 0.0,
    disk_bytes_per_s: float = 0.0,
    kind_of: Sequence[int] | None = None,
) -> Times:
    """Predict one placement; the stages cover all layers, in order, the output is last.

    Equal layers are computed once if ``kind_of`` says which are.
    """
    kinds = kind_of or range(model.shape.n_layers)
    times = tuple(
        _stage_times(model, stage, output if stage is stages[-1] else None, disk_bytes_per_s, kinds)
        for stage in stages
    )
    output_s = model.output_s(host if output is Output.HOST else stages[-1].speed)
    return Times(
        token_s=token_overhead_s + output_s + sum(t.compute_s + t.hop_s for t in times),
        prompt_s=model.prefill_s(sum(t.prefill_s for t in times[:-1]), times[-1].prefill_s),
        load_s=sum(t.load_s for t in times),
        output_s=output_s,
        stages=times,
    )


def _stage_times(
    model: SpeedModel,
    stage: Stage,
    output: Output | None,
    disk_bytes_per_s: float,
    kind_of: Sequence[int],
) -> StageTimes:
    layers, kinds = model.shape.layers[stage.first : stage.end], kind_of[stage.first : stage.end]
    different = dict(zip(kinds, layers, strict=True))
    decode = {kind: model.decode_layer_s(one, stage.speed) for kind, one in different.items()}
    prefill = {
        kind: model.prefill_layer_s(one, stage.speed, stage.link) for kind, one in different.items()
    }
    sent = sum(
        layer.size_bytes
        for index, layer in enumerate(layers, stage.first)
        if index not in stage.cached
    )
    if output in {Output.LAST, Output.SAMPLED} and model.shape.n_layers not in stage.cached:
        sent += model.shape.output.size_bytes
    return StageTimes(
        compute_s=sum(decode[kind] for kind in kinds),
        hop_s=model.hop_s(stage.link, output),
        prefill_s=sum(prefill[kind] for kind in kinds)
        + model.prefill_hop_s(stage.link, is_last=output is not None),
        load_s=model.load_s(sent, stage.link, disk_bytes_per_s),
    )
