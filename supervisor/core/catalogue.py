"""The starting list of models: what they are good at, and plans of them when no hub can be asked.

A model's size in a quantisation is estimated from its parameters, and what planning needs of its
layers from the sizes that its makers published; both are marked as estimates wherever they show.
"""

import tomllib
from collections.abc import Iterable, Sequence
from typing import Final, Literal, get_args

from pydantic import Field, ValidationError, field_validator

from supervisor.core.entities import FrozenModel, ModelFacts
from supervisor.core.model_reference import parse_reference
from supervisor.core.model_shape import LayerShape, ModelShape, Weights
from supervisor.errors import BadSettings

Task = Literal["chat", "code", "reasoning", "vision", "small", "multilingual"]
TASKS: Final[tuple[str, ...]] = get_args(Task)

BITS: Final = {
    "Q2_K": 2.96,
    "Q3_K_M": 3.91,
    "MXFP4": 4.63,
    "Q4_K_M": 4.85,
    "Q5_0": 5.55,
    "Q5_K_M": 5.68,
    "Q6_K": 6.57,
    "Q8_0": 8.5,
    "F16": 16.0,
}
"""Per weight of a whole file: quantisations store some tensors finer than their name says.

Source:
    llama.cpp ``tools/quantize/README.md`` (Llama 3.1 8B); MXFP4: the published size of gpt-oss.
"""

_TYPES: Final = {"Q3_K_M": "Q3_K", "Q4_K_M": "Q4_K", "Q5_K_M": "Q5_K"}
_OUTPUT_BITS: Final = 6.5625
"""The output matrix is stored as Q6_K where the rest is coarser."""

_EXPERTS_USED: Final = 8


class CatalogueModel(FrozenModel):
    """A model that is known to be worth trying."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]{1,62}$")
    repo: str
    licence: str = Field(min_length=1)
    parameters: int = Field(gt=0)
    active_parameters: int | None = Field(default=None, gt=0, description="per token; None: all")
    good_at: tuple[Task, ...] = Field(min_length=1)
    about: str = Field(min_length=1, description="one sentence")
    layers: int = Field(gt=0)
    embedding: int = Field(gt=0)
    kv_elements: int = Field(gt=0, description="keys that a layer caches per token; values alike")
    vocabulary: int = Field(gt=0)
    ctx_train_tokens: int = Field(gt=0)
    is_tied: bool = Field(default=False, description="the output matrix is the embeddings")
    quantisations: tuple[str, ...] = Field(min_length=1)

    @field_validator("repo")
    @classmethod
    def _is_repository(cls, text: str) -> str:
        found = parse_reference(text)
        if found is None or found.repo != text:
            raise ValueError(f"{text!r} is no OWNER/REPO")
        return text

    @field_validator("quantisations")
    @classmethod
    def _are_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [name for name in names if name not in BITS]:
            raise ValueError(f"bits per weight of {', '.join(unknown)} are not known")
        return names

    @property
    def share(self) -> float:
        """Of the weights, what one token needs."""
        return min(1.0, (self.active_parameters or self.parameters) / self.parameters)

    def size_bytes(self, quantisation: str) -> int:
        """Estimated size of its file."""
        return round(self.parameters * BITS[quantisation] / 8)

    def reference(self, quantisation: str) -> str:
        return f"{self.repo}:{quantisation}"


def parse_catalogue(text: str) -> tuple[CatalogueModel, ...]:
    """Read a catalogue in TOML: ``[[model]]`` tables, the most capable first.

    Raises:
        BadSettings: It is not readable; says where.
    """
    try:
        tables = tomllib.loads(text).get("model", [])
        found = tuple(CatalogueModel.model_validate(table) for table in tables)
    except (tomllib.TOMLDecodeError, ValidationError, TypeError) as exc:
        raise BadSettings(f"the catalogue of models is damaged: {exc}; install it again") from exc
    for what, names in (("id", [m.id for m in found]), ("repo", [m.repo for m in found])):
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise BadSettings(f"the catalogue of models has the {what} {twice[0]} twice")
    return found


def for_task(models: Iterable[CatalogueModel], task: str) -> tuple[CatalogueModel, ...]:
    """Those that are good at a task, or all without one; the most capable first."""
    return tuple(model for model in models if not task or task in model.good_at)


def named(models: Sequence[CatalogueModel], text: str) -> CatalogueModel | None:
    """The one with that id, in capitals or not."""
    return next((model for model in models if model.id == text.lower()), None)


def estimated_facts(model: CatalogueModel, quantisation: str) -> ModelFacts:
    """What its header would say."""
    return ModelFacts(
        path=model.reference(quantisation),
        name=model.id,
        architecture="unknown",
        block_count=model.layers,
        size_bytes=model.size_bytes(quantisation),
        ctx_train_tokens=model.ctx_train_tokens,
    )


def estimated_shape(model: CatalogueModel, quantisation: str) -> ModelShape:
    """Its layers, all alike, in proportion to its parameters."""
    bits, elements = BITS[quantisation], model.embedding * model.vocabulary
    output_bits = max(bits, _OUTPUT_BITS) if bits < BITS["Q8_0"] else bits
    matrix, embeddings = round(elements * output_bits / 8), round(elements * bits / 8)
    outside = matrix if model.is_tied else matrix + embeddings
    body = max(model.layers, model.size_bytes(quantisation) - outside)
    kind = _TYPES.get(quantisation, quantisation)
    size = body // model.layers
    read = round(size * model.share)
    has_experts = model.share < 1
    layer = LayerShape(
        size_bytes=size,
        reads=((kind, read),),
        active_elements=round(read * 8 / bits),
        largest_bytes=size // (3 if has_experts else 4),
        key_elements=model.kv_elements,
        value_elements=model.kv_elements,
        attention_elements=model.embedding,
        feed_forward=0 if has_experts else model.embedding * 7 // 2,
        experts_used=_EXPERTS_USED if has_experts else 0,
    )
    output = Weights(
        size_bytes=matrix,
        reads=(("Q6_K" if output_bits == _OUTPUT_BITS else kind, matrix),),
        active_elements=elements,
        largest_bytes=matrix,
    )
    return ModelShape(
        architecture="unknown",
        layers=(layer,) * model.layers,
        embedding=model.embedding,
        heads=max(1, model.embedding // 128),
        head_length=128,
        vocabulary=model.vocabulary,
        output=output,
        output_matrix_bytes=matrix,
        input_bytes=matrix if model.is_tied else embeddings,
        is_tied=model.is_tied,
        ctx_train_tokens=model.ctx_train_tokens,
        last_cut=model.layers,
    )
