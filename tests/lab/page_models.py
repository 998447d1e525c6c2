"""Models of the invented home: of every tool, broken ones, pulls, and what is suggested."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from lab.page_home import LARGE, MAIN_HOST, MEDIUM, MODELS, SMALL, TOO_LARGE, Model
from supervisor.core.entities import PullView
from supervisor.core.holdings import HoldingView
from supervisor.core.library import LibraryModel
from supervisor.core.suggesting import ModelFit, Suggestion, Suggestions, judged

Json = dict[str, Any]

CACHE: Final = "/home/ada/.cache/huggingface/hub"
STUDIO: Final = "/home/ada/.lmstudio/models/lmstudio-community"
REPO: Final = "bartowski/Qwen3-14B-GGUF"
GATED: Final = "meta-llama/Llama-3.3-70B-Instruct-GGUF"
GIB: Final = 1 << 30
MEMORY_BYTES: Final = 34 * GIB
"""That all devices together give to a model."""
RATE_BYTES_PER_S: Final = 62e9
"""Of weights, through all devices, one after the other."""
KV_BYTES: Final = 140_000
"""Of a token."""
MIN_SPEED: Final = 5.0
PULLED: Final = f"{REPO}:Q5_K_M"


def as_found(model: Model, now: datetime, days: float, **more: Any) -> LibraryModel:
    """A model of the home, as the library tells of it."""
    known: Json = {
        "path": model.path,
        "name": model.path.rsplit("/", 1)[-1],
        "title": model.name,
        "source": "folder",
        "architecture": model.architecture,
        "parameters": round(model.size_gb * (0.94e9 if "Q8" in model.path else 1.64e9)),
        "quantisation": "Q8_0" if "Q8" in model.path else "Q4_K_M",
        "size_bytes": model.size_bytes,
        "ctx_train_tokens": model.ctx_train_tokens,
        "parts": (model.path,),
        "changed_at": now.timestamp() - days * 86_400,
    }
    return LibraryModel.model_validate({**known, **more})


def usual(now: datetime) -> list[LibraryModel]:
    """The model folder of most scenes."""
    return [as_found(each, now, 3.0 + index) for index, each in enumerate(MODELS)]


def library(now: datetime) -> list[LibraryModel]:
    """What a long-used computer has, in every tool's folder."""
    hub = f"{CACHE}/models--bartowski--Meta-Llama-3.1-8B-Instruct-GGUF/snapshots/bf5b95e"
    first = "/models/Llama-3.3-70B-Instruct-Q4_K_M-00001-of-00002.gguf"
    gemma = f"{STUDIO}/gemma-3-4b-it-GGUF"
    blob = "sha256-163553aea1b1de62de7c5eb2ef5afb756b4b3133308d9ae7e42e951d8d696ef5"
    return [
        as_found(LARGE, now, 41),
        as_found(MEDIUM, now, 12, source="hub", path=f"{hub}/Meta-Llama-3.1-8B-Q4_K_M.gguf",
                 name="Meta-Llama-3.1-8B-Instruct-Q4_K_M.gguf", parts=(),
                 repo="bartowski/Meta-Llama-3.1-8B-Instruct-GGUF",
                 reference="bartowski/Meta-Llama-3.1-8B-Instruct-GGUF:Q4_K_M"),
        as_found(SMALL, now, 3, source="llama.cpp",
                 reference="ggml-org/Llama-3.2-3B-Instruct-GGUF:Q4_K_M"),
        as_found(TOO_LARGE, now, 90, path=first, name=first.rsplit("/", 1)[-1],
                 parts=(first, first.replace("00001-of", "00002-of"))),
        LibraryModel(path=f"{gemma}/gemma-3-4b-it-Q4_K_M.gguf", name="gemma-3-4b-it-Q4_K_M.gguf",
                     source="lm studio", reference="lmstudio-community/gemma-3-4b-it-GGUF:Q4_K_M",
                     architecture="gemma3", parameters=3_880_000_000, quantisation="Q4_K_M",
                     size_bytes=2_489_894_016, ctx_train_tokens=131_072,
                     projector=f"{gemma}/mmproj-model-f16.gguf", changed_at=now.timestamp() - 9e5),
        LibraryModel(path=f"/usr/share/ollama/.ollama/models/blobs/{blob}", name="qwen3:4b",
                     source="ollama", reference="qwen3:4b", architecture="qwen3",
                     parameters=4_022_468_096, quantisation="Q4_K_M", size_bytes=2_620_788_260,
                     ctx_train_tokens=40_960, changed_at=now.timestamp() - 2e6,
                     warning="it has no chat template; answers may not end. Give one with "
                     "--chat-template-file"),
        LibraryModel(path=f"{gemma}/mmproj-model-f16.gguf", name="mmproj-model-f16.gguf",
                     source="lm studio", architecture="clip", parameters=420_000_000,
                     quantisation="F16", size_bytes=851_251_104, is_companion=True,
                     kind="projector", changed_at=now.timestamp() - 9e5),
        *broken(now),
    ]  # fmt: skip


def broken(now: datetime) -> list[LibraryModel]:
    """Files that end a launch before it begins."""
    changed_at = now.timestamp() - 5e5
    return [
        LibraryModel(path="/models/Mistral-Small-24B-Q4_K_M.gguf", source="folder",
                     name="Mistral-Small-24B-Q4_K_M.gguf", architecture="llama",
                     parameters=23_572_403_200, quantisation="Q4_K_M", size_bytes=9_412_083_712,
                     changed_at=changed_at, problem_code="model_broken",
                     problem="Mistral-Small-24B-Q4_K_M.gguf is truncated: it has 8.8 GiB of "
                     "13.3 GiB", remedy="download it again"),
        LibraryModel(path="/models/Qwen3-235B-A22B-Q4_K_M-00001-of-00003.gguf", source="folder",
                     name="Qwen3-235B-A22B-Q4_K_M-00001-of-00003.gguf", architecture="qwen3moe",
                     quantisation="Q4_K_M", size_bytes=49_861_058_560, changed_at=changed_at,
                     parts=("/models/Qwen3-235B-A22B-Q4_K_M-00001-of-00003.gguf",),
                     problem="2 of its 3 parts are missing: -00002-of-00003, -00003-of-00003",
                     problem_code="model_broken", remedy="put all parts into one folder"),
        LibraryModel(path="/home/ada/.exo/models/tiny/model.gguf", name="model.gguf", source="exo",
                     size_bytes=134, changed_at=changed_at, problem_code="model_broken",
                     problem="model.gguf is a pointer of git-lfs, not the model that it stands for",
                     remedy="run 'git lfs pull' in its folder, or download the file itself"),
    ]  # fmt: skip


def pull(number: int, reference: str, total_gb: float, part: float, **more: Any) -> PullView:
    total = int(total_gb * 1e9)
    repo, _, label = reference.partition(":")
    known: Json = {"id": f"p{number}", "reference": reference, "repo": repo, "label": label,
                   "files": 1, "state": "fetching", "done_bytes": int(total * part),
                   "total_bytes": total}  # fmt: skip
    return PullView.model_validate({**known, **more})


def pulls() -> list[PullView]:
    """One in each state."""
    rate = 11_300_000
    return [
        pull(1, PULLED, 10.51, 0.62, bytes_per_s=rate, eta_s=353.4, deployments=("qwen3-14b",)),
        pull(2, f"{GATED}:Q4_K_M", 0, 0, state="failed", error_code="model_gated",
             detail=f"{GATED} asks for its terms to be accepted; accept them at "
             f"https://huggingface.co/{GATED}, and set HF_TOKEN on the main host"),
        pull(3, "unsloth/Qwen3-30B-A3B-GGUF:UD-Q4_K_XL", 17.72, 0.31, state="paused"),
        pull(4, "ggml-org/gpt-oss-20b-GGUF:MXFP4", 12.11, 1.0, state="checking"),
        pull(5, "Qwen/Qwen2.5-Coder-7B-Instruct-GGUF:Q4_K_M", 4.68, 0, state="queued",
             detail="waits for another pull to end"),
        pull(6, "ggml-org/SmolLM3-3B-GGUF:Q4_K_M", 1.92, 1.0, state="done",
             path=f"{CACHE}/models--ggml-org--SmolLM3-3B-GGUF/SmolLM3-Q4_K_M.gguf"),
    ]  # fmt: skip


# -- what fits ---------------------------------------------------------------------------------


def fit(size_bytes: int, ctx_tokens: int) -> ModelFit:
    """Whether so many bytes of weights fit the home, and how fast they are."""
    needed = size_bytes + ctx_tokens * KV_BYTES
    if needed <= MEMORY_BYTES:
        return ModelFit(ctx_tokens=ctx_tokens, fits=True, tokens_per_s=RATE_BYTES_PER_S / needed,
                        devices=("mac-mini", "attic-pc"), kv_type="f16",
                        is_checked=True)  # fmt: skip
    missing = needed - MEMORY_BYTES
    shorter = 2048 if size_bytes + 2048 * KV_BYTES <= MEMORY_BYTES else None
    reason = f"the devices have {missing / GIB:.1f} GiB too little for it"
    return ModelFit(ctx_tokens=ctx_tokens, fits=False, missing_bytes=missing, reason=reason,
                    smaller_ctx_tokens=shorter, error_code="insufficient_memory")  # fmt: skip


def of_repo(repo: str, ctx_tokens: int) -> Suggestions:
    """Every quantisation of a repository."""
    sizes = {"BF16": 29.54, "Q8_0": 15.7, "Q6_K": 12.12, "Q5_K_M": 10.51, "Q4_K_M": 9.0,
             "Q3_K_M": 7.32, "Q2_K": 5.75, "F32": 59.1}  # fmt: skip
    rows = [
        Suggestion(reference=f"{repo}:{label}", repo=repo, label=label, size_bytes=int(size * 1e9),
                   fit=fit(int(size * 1e9), ctx_tokens))
        for label, size in sorted(sizes.items(), key=lambda each: -each[1])
    ]  # fmt: skip
    return _judged(repo, rows, ctx_tokens)


def of_task(task: str, ctx_tokens: int) -> Suggestions:
    """The best of each model of the catalogue."""
    known = (
        ("Qwen/Qwen3-14B-GGUF", "Q5_K_M", 10.51, "apache-2.0", "chat and reasoning"),
        ("ggml-org/gpt-oss-20b-GGUF", "MXFP4", 12.11, "apache-2.0", "reasoning and tools, quick"),
        ("Qwen/Qwen2.5-Coder-7B-Instruct-GGUF", "Q8_0", 8.1, "apache-2.0", "code"),
        ("ggml-org/gemma-3-12b-it-GGUF", "Q4_K_M", 7.3, "gemma", "chat, sees images"),
        ("ggml-org/SmolLM3-3B-GGUF", "Q4_K_M", 1.92, "apache-2.0", "small, for phones"),
        ("unsloth/Llama-3.3-70B-Instruct-GGUF", "Q4_K_M", 42.52, "llama3.3", "knows much"),
    )  # fmt: skip
    rows = [
        Suggestion(reference=f"{repo}:{label}", repo=repo, label=label, size_bytes=int(size * 1e9),
                   fit=fit(int(size * 1e9), ctx_tokens), licence=licence, about=about, id=repo)
        for repo, label, size, licence, about in known
        if task != "small" or size < 5
    ]  # fmt: skip
    return _judged(task, rows, ctx_tokens)


def _judged(asked: str, rows: Sequence[Suggestion], ctx_tokens: int) -> Suggestions:
    found = judged(rows, MIN_SPEED)
    best = next((each for each in found if each.is_recommended), None)
    words = best.reason if best else "Nothing fits."
    return Suggestions(asked=asked, ctx_tokens=ctx_tokens, min_tokens_per_s=MIN_SPEED,
                       suggestions=found, words=words)  # fmt: skip


def holdings(devices: Sequence[Json], size_bytes: int) -> list[HoldingView]:
    """A third each for those that a launch now would use."""
    needed = size_bytes // 3
    parts = {"mac-mini": 1.0, "attic-pc": 0.45, "pixel-8": 0.0}
    return [
        HoldingView(device=each["name"], total_bytes=size_bytes,
                    held_bytes=int(needed * parts[each["name"]]) if each["name"] in parts else 0,
                    needed_bytes=needed if each["name"] in parts else 0,
                    needed_held_bytes=int(needed * parts.get(each["name"], 0)))
        for each in devices
        if each["name"] != MAIN_HOST
    ]  # fmt: skip
