"""Options of llama-server that nobody may pass through, why, and what to use instead."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from supervisor.core.engine_help import HelpOption


@dataclass(frozen=True, slots=True)
class Family:
    """Options that are refused for one reason. ``prefixes`` are beginnings of names."""

    reason: str
    names: frozenset[str] = frozenset()
    prefixes: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()

    def has(self, name: str) -> bool:
        return (
            name in self.names
            or (bool(self.prefixes) and name.startswith(self.prefixes))
            or (bool(self.suffixes) and name.endswith(self.suffixes))
        )


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


FAMILIES: Final = (
    Family("the model is what you launch: give it as the model", _names("-m --model")),
    Family(
        "requests use the deployment's names: use 'name' and 'aliases' (--name, --alias)",
        _names("-a --alias"),
    ),
    Family(
        "only the gateway talks to llama-server, at an address of its own choice",
        _names("--host --port --reuse-port --api-prefix --props -to --timeout --sse-ping-interval"),
    ),
    Family(
        "only the gateway has llama-server's key; make keys with 'supervisor keys'",
        _names("--api-key --api-key-file"),
        ("--ssl-",),
    ),
    Family(
        "the planner places the layers: use 'devices', 'order', 'split', 'exclude' or 'pin_output'",
        _names(
            "--rpc -dev --device -ngl --gpu-layers --n-gpu-layers -ts --tensor-split -ot "
            "--override-tensor -sm --split-mode -mg --main-gpu -cmoe --cpu-moe -ncmoe --n-cpu-moe "
            "-ncffn --n-cpu-ffn -kvo --kv-offload -nkvo --no-kv-offload --op-offload "
            "--no-op-offload --no-host --list-devices -lzm --lazy-mode"
        ),
        ("-fit", "--fit"),
    ),
    Family("the plan counts its memory: use 'ctx_tokens' (--ctx)", _names("-c --ctx-size")),
    Family(
        "the plan counts their memory: use 'slots' (--slots)",
        _names("-np --parallel -kvu --kv-unified -no-kvu --no-kv-unified --kv-unified-per-slot"),
    ),
    Family(
        "the plan counts its memory: use 'kv_type' (--kv)",
        _names("-ctk --cache-type-k -ctv --cache-type-v"),
    ),
    Family(
        "the plan counts its memory: use 'ubatch' (--ubatch)",
        _names("-b --batch-size -ub --ubatch-size"),
    ),
    Family(
        "it changes what the model needs of memory in a way that the plan does not count",
        _names("--swa-full -fa --flash-attn -dt --defrag-thold"),
    ),
    Family(
        "the plan decides what is kept of conversations: see the setting 'prompt_cache_mib'",
        _names(
            "-cram --cache-ram -ctxcp --ctx-checkpoints --swa-checkpoints -cms "
            "--checkpoint-min-step --cache-idle-slots --no-cache-idle-slots"
        ),
    ),
    Family(
        "the plan decides it: see the setting 'backend_sampling'",
        _names("-bs --backend-sampling"),
    ),
    Family(
        "drafting with a second model or from a lookup file is not planned for",
        _names(
            "-md -td -tbd -devd -ngld -ctkd -ctvd -otd -cmoed -ncmoed -Cd -Crd -Cbd "
            "--draft -lcs --lookup-cache-static -lcd --lookup-cache-dynamic"
        ),
        ("--spec-", "--draft-"),
        ("-draft", "-spec"),
    ),
    Family(
        "the supervisor reads llama-server's log, figures and slots",
        _names(
            "-v --verbose -lv --verbosity --metrics --slots --no-slots --warmup --no-warmup "
            "--perf --no-perf"
        ),
        ("--log-", "--no-log-"),
    ),
    Family(
        "the supervisor decides how the model's file is read",
        _names("-lm --load-mode --mmap --no-mmap --mlock --direct-io --no-direct-io -dio -ndio"),
    ),
    Family(
        "use 'ttl_s' (--ttl), which stops a deployment that nobody uses",
        _names("--sleep-idle-seconds"),
    ),
    Family(
        "a launch is proven by a completion, which this turns off",
        _names("--embedding --embeddings --rerank --reranking"),
    ),
    Family("use 'lora' (--lora), so that the plan counts its memory", prefixes=("--lora",)),
    Family(
        "use 'mmproj' (--mmproj), so that the plan counts its memory",
        _names(
            "-mm --mmproj --no-mmproj --mmproj-auto --no-mmproj-auto --mmproj-offload "
            "--no-mmproj-offload -mmdev --mmproj-device"
        ),
    ),
    Family("use 'chat_template_file' (--chat-template-file)", _names("--chat-template-file")),
    Family("use 'chat_template', the name of a template of the engine", _names("--chat-template")),
    Family(
        "it would fetch from other hosts; fetch models with 'supervisor models'",
        _names(
            "-hf -hfr -hff -hft -hfv -hffv -hfd -hfrd -mu --model-url -mmu --mmproj-url -dr "
            "--docker-repo --offline -cl --cache-list"
        ),
        ("--hf-",),
        ("-default", "-url"),
    ),
    Family(
        "it would let requests run programs, or read files, on the main host",
        _names("-ag --agent -no-ag --no-agent --media-path --path --video-ffmpeg-dir"),
        ("--tools", "--mcp-"),
    ),
    Family("it would write files on the main host", _names("--slot-save-path")),
    Family("web pages are served by the gateway alone", prefixes=("--cors-", "--no-cors-")),
    Family(
        "the page is the supervisor's own",
        _names("--ui --no-ui --webui --no-webui"),
        ("--ui-", "--webui-", "--no-ui-", "--no-webui-"),
    ),
    Family(
        "a deployment has one model; launch others beside it",
        prefixes=("--models-", "--no-models-"),
    ),
    Family(
        "with it, llama-server would end at once",
        _names("-h --help --usage --version --license --completion-bash"),
    ),
)

_NAMES_PLACE: Final = re.compile(
    r"FNAME|FILE|PATH|DIR\b|URL|HOST|ORIGIN|REPO|SERVER|TOKEN\b|\bKEY\b"
)
_REACHES_OUT: Final = re.compile(r"download|internet|untrusted|\bURL\b", re.IGNORECASE)


def refusal(names: Iterable[str], option: HelpOption | None = None) -> str:
    """Why an option is refused; empty: it is not.

    Args:
        names: All of its names.
        option: What the engine says of it, if it knows it. What it says decides about options that
            are newer than we are.
    """
    for family in FAMILIES:
        if any(family.has(name) for name in names):
            return family.reason
    if option is not None and _NAMES_PLACE.search(option.hint):
        return (
            "it names a file, a host or a secret, and it is not known what the engine does with it"
        )
    if option is not None and _REACHES_OUT.search(option.description):
        return "the engine's own help says that it reaches other hosts, or is not safe"
    return ""
