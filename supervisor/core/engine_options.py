"""From a spec's model options to words for llama-server, each checked against the engine's help.

Nothing here goes through a shell. What an option was refused for is said without its value, which
may be a secret.
"""

import difflib
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from supervisor.core.engine_help import EngineHelp, HelpOption
from supervisor.core.model_options import ModelOptions, Rope, Sampling
from supervisor.core.refused_options import refusal
from supervisor.errors import EngineOptionRefused

FileKind = Literal["template", "text", "JSON", "LoRA adapter", "control vector", "projector"]

MAX_VALUE_CHARS: Final = 8192
_SHOWN_CHARS: Final = 60

_FILE_OPTIONS: Final[dict[str, FileKind]] = {
    "--grammar-file": "text",
    "--json-schema-file": "JSON",
    "-jf": "JSON",
    "--control-vector": "control vector",
}
"""Of the options that may pass through, those whose value is a file, which is read and no more."""

_JSON_OPTIONS: Final = ("--chat-template-kwargs", "--json-schema", "-j")
_OVERRIDE: Final = re.compile(
    r"(?P<key>[\w.-]{1,127})=(?:int:-?\d{1,18}|float:-?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?"
    r"|bool:(?:true|false)|str:[^,]{0,127})"
)
"""The engine would take the first word of another number, or 0, and ends at longer texts."""

_FIXED_KEYS: Final = re.compile(
    r"general\.(?:architecture|alignment)|split\..*|.*\.(?:block_count|embedding_length(?:_out)?"
    r"|vocab_size|feed_forward_length|expert_count|nextn_predict_layers|full_attention_interval"
    r"|token_shift_count|attention\.(?:(?:head_count|(?:key|value)_length|kv_lora_rank"
    r"|sliding_window|shared_kv_layers|recurrent_layers)\w*|indexer\..*)"
    r"|(?:ssm|wkv|kda|shortconv)\..*)"
)
"""Metadata that the plan follows from."""

_OVERRIDE_OPTION: Final = "--override-kv"
_SCALING: Final = {"--rope-scaling", "--rope-scale", "--rope-freq-base", "--rope-freq-scale"}
_TEMPLATE_NAME: Final = re.compile(r"[\w.-]+")
_SAMPLING: Final = {
    "temperature": "--temp",
    "top_k": "--top-k",
    "top_p": "--top-p",
    "min_p": "--min-p",
    "repeat_penalty": "--repeat-penalty",
    "presence_penalty": "--presence-penalty",
    "frequency_penalty": "--frequency-penalty",
    "seed": "--seed",
}


@dataclass(frozen=True, slots=True)
class OptionFile:
    """A file of the main host that an option names, and what it has to be."""

    option: str
    path: str
    kind: FileKind


@dataclass(frozen=True, slots=True)
class EngineWords:
    """What llama-server is told, and the files that it will read for that."""

    words: tuple[str, ...] = ()
    files: tuple[OptionFile, ...] = ()


class _Words:
    """Collects words; no option twice."""

    def __init__(self, known: EngineHelp) -> None:
        self._known = known
        self._given: set[str] = set()
        self.words: list[str] = []
        self.files: list[OptionFile] = []

    def add(self, name: str, *values: str, file: FileKind | None = None) -> None:
        option = self._known.find(name)
        if self._known.options and option is None:
            raise EngineOptionRefused(
                f"the llama.cpp of the main host has no {name}; leave it out, or install another "
                "build with 'supervisor engine install'"
            )
        names = option.names if option else (name,)
        if self._given.intersection(names):
            raise EngineOptionRefused(
                f"{name} is given twice, as an option and as a field, or under two names, or here "
                "and in the settings of the model; give it once"
            )
        self._given.update(names)
        if option is not None and values:
            _check_value(name, option, values)
        self.words += [name, *values]
        if file is not None:
            self.files.append(OptionFile(name, values[0], file))


def engine_words(options: ModelOptions, known: EngineHelp, projector: str = "") -> EngineWords:
    """Check a spec's model options and spell them for the engine in use.

    Args:
        options: Of the spec.
        known: What the engine's ``--help`` says; an empty one knows no option and checks none.
        projector: The file that images need, if there is one.

    Raises:
        EngineOptionRefused: With the option and what to use instead; never its value.
    """
    made = _Words(known)
    _add_template(made, options, known)
    for value, flag in (
        (options.reasoning_format, "--reasoning-format"),
        (options.reasoning_budget, "--reasoning-budget"),
    ):
        if value is not None:
            made.add(flag, str(value))
    if projector:
        made.add("--mmproj", projector, file="projector")
        made.add("--no-mmproj-offload")
    _add_lora(made, options, known)
    for flag, number in (*_rope(options.rope), *_sampling(options.sampling)):
        made.add(flag, number)
    if options.override_kv:
        made.add(_OVERRIDE_OPTION, ",".join(map(_checked_override, options.override_kv)))
    for text in options.engine_options:
        _add_further(made, text, known)
    return EngineWords(tuple(made.words), tuple(made.files))


def scales_positions(made: EngineWords) -> bool:
    """Whether positions are scaled, beyond the training of the model perhaps."""
    return not _SCALING.isdisjoint(made.words)


def stretched(made: EngineWords, architecture: str, ctx_tokens: int) -> EngineWords:
    """With what lets llama-server use a context beyond the training, if positions are scaled.

    Source:
        llama.cpp ``tools/server/server-context.cpp`` ``load_model``: a slot has no more than the
        training context, which only YaRN makes longer (``llama_init_from_model``).
    """
    words = [*made.words]
    key = f"{architecture}.context_length="
    override = f"{key}int:{ctx_tokens}"
    if not scales_positions(made) or "yarn" in words:
        return made
    if _OVERRIDE_OPTION not in words:
        words += [_OVERRIDE_OPTION, override]
    elif key not in words[at := words.index(_OVERRIDE_OPTION) + 1]:
        words[at] += f",{override}"
    return replace(made, words=tuple(words))


def parse_option(text: str) -> tuple[str, str | None]:
    """The name and the value of FLAG or FLAG=VALUE; the dashes before it may be left out.

    Within it they may be underscores, which llama.cpp takes for dashes, too.

    Raises:
        EngineOptionRefused: It is not of that form.
    """
    name, equals, value = text.partition("=")
    name = name.strip()
    if not name.startswith("-"):
        name = f"--{name}"
    if name.startswith("--"):
        name = name.replace("_", "-")
    if not re.fullmatch(r"--?[A-Za-z][\w.-]*", name):
        raise EngineOptionRefused(
            f"an option that begins with {_short(name.split()[0])!r} is not of the form FLAG or "
            "FLAG=VALUE; write it as in --cache-reuse=256"
        )
    return name, value if equals else None


# -- what has a field of its own -------------------------------------------------------------------


def _add_template(made: _Words, options: ModelOptions, known: EngineHelp) -> None:
    if options.chat_template and options.chat_template_file:
        raise EngineOptionRefused(
            "both chat_template and chat_template_file are given; give one of them"
        )
    # Before the template: without it, builds of before 2026 take only templates that they know.
    if options.jinja is not None:
        made.add("--jinja" if options.jinja else "--no-jinja")
    elif options.chat_template_file and known.find("--jinja"):
        made.add("--jinja")
    if options.chat_template_file:
        made.add("--chat-template-file", options.chat_template_file, file="template")
    if options.chat_template:
        _check_template_name(options.chat_template, known)
        made.add("--chat-template", options.chat_template)


def _check_template_name(name: str, known: EngineHelp) -> None:
    option = known.find("--chat-template")
    names = option.templates if option else ()
    if name in names or (not names and _TEMPLATE_NAME.fullmatch(name)):
        return
    raise EngineOptionRefused(
        f"the llama.cpp of the main host has no chat template {_short(name)!r}{_meant(name, names)}"
        "; a template of your own goes into a file, for chat_template_file"
    )


def _add_lora(made: _Words, options: ModelOptions, known: EngineHelp) -> None:
    """One word for all: builds since 2026 read only the last ``--lora``, with commas in it."""
    if not options.lora:
        return
    is_scaled = any(each.scale != 1 for each in options.lora)
    flag = "--lora-scaled" if is_scaled else "--lora"
    option = known.find(flag)
    is_older = option is not None and option.values > 1
    forbidden = "" if is_older else ",:" if is_scaled else ","
    for each in options.lora:
        if any(c in forbidden for c in each.path):
            raise EngineOptionRefused(
                f"llama-server cannot take an adapter whose name has a comma or a colon "
                f"({_short(each.path)!r}); rename it"
            )
        made.files.append(OptionFile(flag, each.path, "LoRA adapter"))
    if option is not None and "comma-separated" not in option.description and len(options.lora) > 1:
        raise EngineOptionRefused(
            "the llama.cpp of the main host takes one LoRA adapter; update it, or give one"
        )
    if is_older:
        made.add(flag, options.lora[0].path, f"{options.lora[0].scale:g}")
        return
    each_word = [f"{e.path}:{e.scale:g}" if is_scaled else e.path for e in options.lora]
    made.add(flag, ",".join(each_word))


def _rope(rope: Rope | None) -> Iterable[tuple[str, str]]:
    for name, value in rope.model_dump(exclude_none=True).items() if rope else ():
        flag = name if name.startswith("yarn_") else f"rope_{name}"
        yield f"--{flag.replace('_', '-')}", _text(value)


def _sampling(sampling: Sampling | None) -> Iterable[tuple[str, str]]:
    for name, value in sampling.model_dump(exclude_none=True).items() if sampling else ():
        yield _SAMPLING[name], _text(value)


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _checked_override(text: str) -> str:
    found = _OVERRIDE.fullmatch(text)
    if found is None or any(not c.isprintable() for c in text):
        raise EngineOptionRefused(
            "an override of the model's metadata is written KEY=TYPE:VALUE without commas, with "
            "int, float, bool or str as its TYPE, as in tokenizer.ggml.add_bos_token=bool:false"
        )
    if _FIXED_KEYS.fullmatch(found["key"]):
        raise EngineOptionRefused(
            f"{_short(found['key'])} decides what the model needs of memory, and cannot be "
            "overridden"
        )
    return text


# -- what passes through ---------------------------------------------------------------------------


def _add_further(made: _Words, text: str, known: EngineHelp) -> None:
    name, value = parse_option(text)
    option = known.find(name)
    if why := refusal(option.names if option else (name,), option if _may_reach(name) else None):
        raise EngineOptionRefused(f"{name} cannot be passed to llama-server: {why}")
    if option is None:
        if not known.options:
            made.add(name, *([] if value is None else [value]))
            return
        allowed = [each for each, found in known.options.items() if not refusal(found.names, found)]
        raise EngineOptionRefused(
            f"the llama.cpp of the main host knows no {_short(name)}{_meant(name, allowed)}; see "
            "'llama-server --help'"
        )
    if value is None and option.values:
        raise EngineOptionRefused(f"{name} needs a value: write {name}=VALUE ({option.hint})")
    if value is not None and not option.values:
        raise EngineOptionRefused(f"{name} takes no value; write it alone")
    values = [] if value is None else value.split() if option.values > 1 else [value]
    if len(values) != option.values:
        raise EngineOptionRefused(f"{name} needs {option.values} values: {option.hint}")
    if name == _OVERRIDE_OPTION:
        values = [",".join(map(_checked_override, values[0].split(",")))]
    made.add(name, *values, file=_FILE_OPTIONS.get(name))


def _may_reach(name: str) -> bool:
    """Whether what the help says of an option decides; what we know ourselves does not need it."""
    return name not in (*_FILE_OPTIONS, *_JSON_OPTIONS, _OVERRIDE_OPTION)


def _meant(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" (did you mean {near[0]}?)" if near else ""


def _check_value(name: str, option: HelpOption, values: Sequence[str]) -> None:
    for value in values:
        if len(value) > MAX_VALUE_CHARS or "\0" in value:
            raise EngineOptionRefused(
                f"the value of {name} is no text of at most {MAX_VALUE_CHARS} characters"
            )
        if name in _JSON_OPTIONS:
            _check_json(name, value)
        if allowed := option.allowed:
            _check_allowed(name, value, allowed)
        elif option.is_number or option.limits:
            _check_number(name, value, option)


def _check_allowed(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise EngineOptionRefused(
            f"{name} takes {', '.join(allowed)}, not {_short(value)!r}{_meant(value, allowed)}"
        )


def _check_number(name: str, value: str, option: HelpOption) -> None:
    try:
        if "_" in value or not value.isascii() or value != value.strip():
            raise ValueError  # which Python takes, and the engine reads otherwise
        number = float(int(value)) if option.is_whole_number or option.limits else float(value)
    except (ValueError, OverflowError):
        kind = "a whole number" if option.is_whole_number or option.limits else "a number"
        raise EngineOptionRefused(f"{name} takes {kind}, not {_short(value)!r}") from None
    if not math.isfinite(number) or abs(number) > 1e18:
        raise EngineOptionRefused(f"{name} takes a number of usual size, not {_short(value)!r}")
    if option.limits and not option.limits[0] <= number <= option.limits[1]:
        least, most = option.limits
        raise EngineOptionRefused(f"{name} takes {least} to {most}, not {_short(value)}")


def _check_json(name: str, value: str) -> None:
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        raise EngineOptionRefused(f"the value of {name} is not JSON; write an object") from None
    if not isinstance(parsed, dict):
        raise EngineOptionRefused(f"the value of {name} is not a JSON object; write one in braces")


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"
