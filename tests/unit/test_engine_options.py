"""Model options against the engine's help: what passes, what is refused and why, and how it is
spelled."""

from typing import Any

import pytest
from some_help import KNOWN

from supervisor.core.engine_help import EngineHelp, parse_help
from supervisor.core.engine_options import OptionFile, engine_words, parse_option, stretched
from supervisor.core.entities import DeploymentSpec
from supervisor.core.refused_options import FAMILIES, refusal
from supervisor.errors import EngineOptionRefused


def words(known: EngineHelp = KNOWN, projector: str = "", **fields: Any) -> list[str]:
    return list(engine_words(DeploymentSpec(model="/m", **fields), known, projector).words)


def refused(**fields: Any) -> str:
    with pytest.raises(EngineOptionRefused) as caught:
        words(**fields)
    return str(caught.value)


# -- the help --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "names", "hint", "values"),
    [
        ("-h", ("-h", "--help", "--usage"), "", 0),
        ("--threads", ("-t", "--threads"), "N", 1),
        ("-nkvo", ("-kvo", "--kv-offload", "-nkvo", "--no-kv-offload"), "", 0),
        ("--control-vector-layer-range", ("--control-vector-layer-range",), "START END", 2),
        ("--chat-template-file", ("--chat-template-file",), "JINJA_TEMPLATE_FILE", 1),
        ("--override-kv", ("--override-kv",), "KEY=TYPE:VALUE,...", 1),
    ],
)
def test_names_and_values_are_read(
    name: str, names: tuple[str, ...], hint: str, values: int
) -> None:
    option = KNOWN.options[name]
    assert (option.names, option.hint, option.values) == (names, hint, values)


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("-fa", ("on", "off", "auto")),
        ("--pooling", ("none", "mean", "cls", "last", "rank")),
        ("--reasoning-format", ("none", "deepseek", "auto")),
        ("--threads", ()),
        ("--poll", ()),
    ],
)
def test_allowed_values_are_read(name: str, allowed: tuple[str, ...]) -> None:
    assert KNOWN.options[name].allowed == allowed


def test_limits_kinds_of_numbers_and_templates_are_read() -> None:
    assert KNOWN.options["--poll"].limits == (0, 100)
    assert KNOWN.options["--top-k"].is_whole_number
    assert not KNOWN.options["--temp"].is_whole_number
    assert KNOWN.options["--chat-template"].templates == (
        "chatml", "command-r", "deepseek", "gemma", "granite-4.0", "llama3", "zephyr",
    )  # fmt: skip


def test_what_is_no_help_knows_nothing() -> None:
    assert parse_help("llama-server: error while loading shared libraries").options == {}
    assert parse_help("").options == {}


# -- fields ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ""),
        ({"chat_template": "granite-4.0"}, "--chat-template granite-4.0"),
        ({"jinja": False}, "--no-jinja"),
        ({"reasoning_format": "none"}, "--reasoning-format none"),
        ({"reasoning_budget": 0}, "--reasoning-budget 0"),
        ({"lora": [{"path": "/a.gguf"}]}, "--lora /a.gguf"),
        (
            {"lora": [{"path": "/a.gguf"}, {"path": "/b.gguf", "scale": 0.5}]},
            "--lora-scaled /a.gguf:1,/b.gguf:0.5",
        ),
        (
            {"rope": {"scaling": "yarn", "scale": 4, "yarn_orig_ctx": 8192}},
            "--rope-scaling yarn --rope-scale 4 --yarn-orig-ctx 8192",
        ),
        ({"sampling": {"temperature": 0.25, "top_k": 5}}, "--temp 0.25 --top-k 5"),
        (
            {"override_kv": ["a.add_bos=bool:false", "b.x=int:4"]},
            "--override-kv a.add_bos=bool:false,b.x=int:4",
        ),
        ({"engine_options": ["--cache-reuse=256", "-nocb"]}, "--cache-reuse 256 -nocb"),
        ({"engine_options": ["threads=2"]}, "--threads 2"),
        ({"engine_options": ["--cache_reuse=4", "top_k=5"]}, "--cache-reuse 4 --top-k 5"),
        ({"engine_options": ["override-kv=a=int:1,b=str:x"]}, "--override-kv a=int:1,b=str:x"),
        ({"engine_options": ["--control-vector-layer-range=1 4"]},
         "--control-vector-layer-range 1 4"),
    ],
)  # fmt: skip
def test_a_field_becomes_words(fields: dict[str, Any], expected: str) -> None:
    assert words(**fields) == expected.split()


def test_a_template_file_comes_after_jinja_and_is_checked() -> None:
    made = engine_words(DeploymentSpec(model="/m", chat_template_file="/t.jinja"), KNOWN)
    assert made.words == ("--jinja", "--chat-template-file", "/t.jinja")
    assert made.files == (OptionFile("--chat-template-file", "/t.jinja", "template"),)


def test_a_projector_never_goes_to_a_device() -> None:
    made = engine_words(DeploymentSpec(model="/m"), KNOWN, "/p.gguf")
    assert made.words == ("--mmproj", "/p.gguf", "--no-mmproj-offload")
    assert made.files == (OptionFile("--mmproj", "/p.gguf", "projector"),)


def test_values_stay_one_word_whatever_is_in_them() -> None:
    value = '{"a": "$(touch /tmp/x); `id` \' \\" && é"}'
    assert words(engine_options=[f"--chat-template-kwargs={value}"]) == [
        "--chat-template-kwargs", value,
    ]  # fmt: skip


def test_an_engine_that_lacks_an_option_is_named() -> None:
    told = refused(known=parse_help("-t,    --threads N     threads (default: -1)"), jinja=True)
    assert "has no --jinja" in told


def test_a_scaled_adapter_is_two_words_for_older_builds() -> None:
    older = parse_help("--lora-scaled FNAME SCALE               path to LoRA adapter with scaling")
    assert words(older, lora=[{"path": "/a:b.gguf", "scale": 0.5}]) == [
        "--lora-scaled", "/a:b.gguf", "0.5",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "added"),
    [
        ({"rope": {"scale": 4}}, "--override-kv llama.context_length=int:8192"),
        ({"engine_options": ["rope-scale=4"]}, "--override-kv llama.context_length=int:8192"),
        ({"rope": {"scaling": "yarn", "scale": 4}}, ""),
        ({"sampling": {"top_k": 4}}, ""),
    ],
)
def test_scaled_positions_may_go_beyond_the_training(fields: dict[str, Any], added: str) -> None:
    made = engine_words(DeploymentSpec(model="/m", **fields), KNOWN)
    assert stretched(made, "llama", 8192).words == (*made.words, *added.split())


def test_own_overrides_stay_where_positions_are_scaled() -> None:
    for override, expected in (
        ("a.b=int:1", "a.b=int:1,llama.context_length=int:8192"),
        ("llama.context_length=int:9", "llama.context_length=int:9"),
    ):
        spec = DeploymentSpec(model="/m", rope={"scale": 4}, override_kv=(override,))
        made = stretched(engine_words(spec, KNOWN), "llama", 8192)
        assert made.words[-2:] == ("--override-kv", expected)


def test_what_is_no_option_is_told_without_what_follows() -> None:
    told = refused(engine_options=["--hf-token hf_secret"])
    assert "--hf-token" in told
    assert "secret" not in told


def test_underscores_do_not_hide_a_name() -> None:
    """llama.cpp reads them as dashes."""
    for known in (KNOWN, EngineHelp()):
        told = refused(known=known, engine_options=["--slot_save_path=/x"])
        assert "write files" in told


def test_without_any_help_nothing_is_checked_but_what_we_know_is_refused() -> None:
    assert words(EngineHelp(), engine_options=["--new=1"]) == ["--new", "1"]
    assert "only the gateway" in refused(known=EngineHelp(), engine_options=["--port=1"])


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"chat_template": "chatmi"}, "did you mean chatml"),
        ({"chat_template": "{{ messages }}"}, "goes into a file"),
        ({"chat_template": "gemma", "chat_template_file": "/t"}, "give one of them"),
        ({"reasoning_format": "deepsek"}, "takes none, deepseek, auto, not 'deepsek'"),
        ({"rope": {"scaling": "cubic"}}, "takes none, linear, yarn"),
        ({"lora": [{"path": "/a,b.gguf"}]}, "rename it"),
        ({"lora": [{"path": "/a:b.gguf", "scale": 2}]}, "rename it"),
        ({"override_kv": ["llama.block_count=int:3"]}, "llama.block_count decides"),
        ({"override_kv": ["split.count=int:0"]}, "split.count decides"),
        ({"override_kv": ["a.b=int:3,c.d=int:4"]}, "without commas"),
        ({"override_kv": ["a.b=list:3"]}, "KEY=TYPE:VALUE"),
        ({"override_kv": ["a.b=int:many"]}, "KEY=TYPE:VALUE"),
        ({"override_kv": ["a.b=bool:yes"]}, "KEY=TYPE:VALUE"),
        ({"override_kv": ["a.b=float:1,5"]}, "KEY=TYPE:VALUE"),
        ({"override_kv": [f"a.b=str:{'x' * 128}"]}, "KEY=TYPE:VALUE"),
        ({"override_kv": ["deepseek2.attention.kv_lora_rank=int:9"]}, "decides what"),
        ({"override_kv": ["gemma3.attention.key_length_swa=int:9"]}, "decides what"),
        ({"override_kv": ["qwen35.full_attention_interval=int:9"]}, "decides what"),
        ({"override_kv": ["rwkv7.wkv.head_size=int:9"]}, "decides what"),
        ({"sampling": {"top_k": 5}, "engine_options": ["--top-k=7"]}, "--top-k is given twice"),
        ({"sampling": {"temperature": 1}, "engine_options": ["--temperature=1"]}, "given twice"),
        ({"engine_options": ["--jinja", "--no-jinja"]}, "--no-jinja is given twice"),
    ],
)
def test_a_field_that_cannot_be_is_refused(fields: dict[str, Any], told: str) -> None:
    assert told in refused(**fields)


# -- further options -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--cache-resue=4", "did you mean --cache-reuse?"),
        ("--thread=4", "did you mean --threads?"),
        ("--zzzzqqqq", "knows no --zzzzqqqq; see"),
        ("--jinja=on", "takes no value"),
        ("--cache-reuse", "needs a value: write --cache-reuse=VALUE (N)"),
        ("--override-kv=a.b=int:1,llama.block_count=int:3", "llama.block_count decides"),
        ("--override-kv=a.b", "KEY=TYPE:VALUE"),
        ("--top-k=many", "takes a whole number, not 'many'"),
        ("--top-k=1.5", "takes a whole number"),
        ("--top-k=1_000", "takes a whole number"),
        ("--top-k=\n5", "takes a whole number"),
        ("--temp=\uff11", "takes a number"),
        ("--top-k=1e400", "takes a whole number"),
        ("--temp=nan", "a number of usual size"),
        ("--temp=warm", "takes a number"),
        ("--poll=101", "takes 0 to 100, not 101"),
        ("--pooling=sum", "takes none, mean, cls, last, rank, not 'sum'"),
        ("--chat-template-kwargs={a}", "is not JSON"),
        ("--chat-template-kwargs=[1]", "not a JSON object"),
        ("--control-vector-layer-range=1", "needs 2 values"),
        ("--top-k 5", "begins with '--top-k' is not of the form FLAG or FLAG=VALUE"),
        ("; rm -rf /", "is not of the form FLAG or FLAG=VALUE"),
        ("--upload-to=x", "not safe"),
        ("--more-weights=/x", "names a file, a host or a secret"),
    ],
)
def test_an_option_that_cannot_be_is_refused(option: str, told: str) -> None:
    assert told in refused(engine_options=[option])


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("-m=/x", "give it as the model"),
        ("--alias=x", "'aliases'"),
        ("--port=1", "only the gateway"),
        ("--host=0.0.0.0", "only the gateway"),
        ("--api-key=sk-secret", "'supervisor keys'"),
        ("--ssl-key-file=/x", "'supervisor keys'"),
        ("--rpc=1.2.3.4:1", "'devices'"),
        ("-dev=none", "'devices'"),
        ("-ngl=99", "'split'"),
        ("--tensor-split=1,1", "'split'"),
        ("-nkvo", "'devices'"),
        ("-ot=.*=CPU", "'devices'"),
        ("--fit=on", "'devices'"),
        ("-c=8192", "'ctx_tokens'"),
        ("--parallel=4", "'slots'"),
        ("-kvu", "'slots'"),
        ("-ctk=q8_0", "'kv_type'"),
        ("-ub=64", "'ubatch'"),
        ("-fa=off", "does not count"),
        ("--cache-ram=1", "'prompt_cache_mib'"),
        ("--ctx-checkpoints=1", "'prompt_cache_mib'"),
        ("-bs", "'backend_sampling'"),
        ("--model-draft=/x", "drafting"),
        ("--spec-type=ngram-mod", "drafting"),
        ("-lcs=/x", "drafting"),
        ("--log-file=/x", "log"),
        ("-lv=9", "log"),
        ("--metrics", "log"),
        ("--load-mode=dio", "how the model's file is read"),
        ("--sleep-idle-seconds=9", "'ttl_s'"),
        ("--embedding", "proven by a completion"),
        ("--lora=/x", "'lora'"),
        ("--mmproj=/x", "'mmproj'"),
        ("--no-mmproj", "'mmproj'"),
        ("--chat-template=chatml", "'chat_template'"),
        ("--chat-template-file=/x", "'chat_template_file'"),
        ("--hf-repo=a/b", "fetch from other hosts"),
        ("-hft=hf_secret", "fetch from other hosts"),
        ("--model-url=http://x", "fetch from other hosts"),
        ("--gpt-oss-20b-default", "fetch from other hosts"),
        ("--tools=all", "run programs"),
        ("--mcp-servers-json={}", "run programs"),
        ("--agent", "run programs"),
        ("--media-path=/", "read files"),
        ("--path=/", "read files"),
        ("--slot-save-path=/x", "write files"),
        ("--cors-origins=*", "gateway alone"),
        ("--webui", "supervisor's own"),
        ("--ui-mcp-proxy", "supervisor's own"),
        ("--models-dir=/x", "one model"),
        ("--version", "end at once"),
    ],
)
def test_what_is_ours_or_reaches_out_is_refused_with_what_to_use(option: str, told: str) -> None:
    message = refused(engine_options=[option])
    name = option.partition("=")[0]
    assert told in message
    assert message.startswith(f"{name} ")
    assert "secret" not in message, "a value may be one"


def test_every_family_has_a_case_of_its_own() -> None:
    reasons = [family.reason for family in FAMILIES]
    assert len(set(reasons)) == len(reasons)
    for family in FAMILIES:
        names = [*family.names, *family.prefixes, *(f"--x{end}" for end in family.suffixes)]
        assert names
        assert all(refusal([name]) for name in names)


def test_one_spelling_refuses_the_others() -> None:
    """A build may call a refused option by a name that we do not know."""
    known = parse_help("-x,    --xyz, --port PORT               port to listen (default: 8080)")
    assert "only the gateway" in refused(known=known, engine_options=["--xyz=1"])


def test_names_without_dashes_are_long_names() -> None:
    assert parse_option("top-k=4") == ("--top-k", "4")
    assert parse_option("-t=4") == ("-t", "4")
    assert parse_option("jinja") == ("--jinja", None)
    assert parse_option("grammar=a=b") == ("--grammar", "a=b")
