"""What the operator may set of the engine's own model options, as part of a deployment's spec."""

from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

MOST_OPTIONS: Final = 64
MOST_ADAPTERS: Final = 16

FilePath = Annotated[str, StringConstraints(min_length=1, max_length=4096)]
"""Of the main host, in full."""

OptionText = Annotated[str, StringConstraints(min_length=2, max_length=8192)]
KeyOverride = Annotated[str, StringConstraints(min_length=5, max_length=512)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Lora(_Part):
    """An adapter (GGUF file) and how strongly it is applied."""

    path: FilePath
    scale: float = Field(default=1.0, ge=-100, le=100, allow_inf_nan=False)


class Sampling(_Part):
    """What llama-server samples with when a request does not say. None: its own default."""

    temperature: float | None = Field(default=None, ge=0, le=100)
    top_k: int | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, ge=0, le=1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repeat_penalty: float | None = Field(default=None, gt=0, le=10)
    presence_penalty: float | None = Field(default=None, ge=-10, le=10)
    frequency_penalty: float | None = Field(default=None, ge=-10, le=10)
    seed: int | None = Field(default=None, ge=-1, lt=1 << 32)


class Rope(_Part):
    """How positions beyond the model's training are scaled. None: as the model's file says."""

    scaling: str | None = Field(default=None, examples=["none", "linear", "yarn"], max_length=32)
    scale: float | None = Field(default=None, gt=0)
    freq_base: float | None = Field(default=None, gt=0)
    freq_scale: float | None = Field(default=None, gt=0)
    yarn_orig_ctx: int | None = Field(default=None, ge=0)
    yarn_ext_factor: float | None = None
    yarn_attn_factor: float | None = None
    yarn_beta_slow: float | None = None
    yarn_beta_fast: float | None = None


class ModelOptions(BaseModel):
    """The part of a spec that llama-server is told as it is, once it was checked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    chat_template_file: FilePath | None = Field(
        default=None, description="Jinja template on the main host, in place of the model's own"
    )
    chat_template: str | None = Field(
        default=None, max_length=64, description="name of one of the engine's own templates"
    )
    jinja: bool | None = Field(default=None, description="None: the engine's own default")
    reasoning_format: str | None = Field(default=None, max_length=32)
    reasoning_budget: int | None = Field(
        default=None, ge=-1, description="tokens; -1: as many as it likes, 0: none"
    )
    mmproj: str | None = Field(
        default=None,
        max_length=4096,
        description="projector file for images; None: the one beside the model; empty: none",
    )
    lora: tuple[Lora, ...] = Field(default=(), max_length=MOST_ADAPTERS)
    rope: Rope | None = None
    override_kv: tuple[KeyOverride, ...] = Field(
        default=(), max_length=MOST_OPTIONS, examples=[["tokenizer.ggml.add_bos_token=bool:false"]]
    )
    sampling: Sampling | None = None
    engine_options: tuple[OptionText, ...] = Field(
        default=(),
        max_length=MOST_OPTIONS,
        description="further options of llama-server, each FLAG or FLAG=VALUE",
        examples=[["--cache-reuse=256", "--no-context-shift"]],
    )
