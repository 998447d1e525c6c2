"""Masking: no secret is left, and what is no secret is left alone."""

import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.masking import Private, mask, secrets_of

FINGERPRINT = "Qb3" + "f" * 39 + "_"
CODE = f"192.168.1.9:8101,[fd00::1]:8101/Tok-en_0123456789/{FINGERPRINT}"
PEM = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIB\nAbc+/=\n-----END EC PRIVATE KEY-----"
HUB = "hf_" + "aB3" * 11 + "x"
OURS = "sk-" + "aB3_-x9Z" * 4
ALICE = Private(
    secrets=("hunter2-hunter2", 'say "ü" \\ it\'s'),
    homes=("/srv/people/alice/",),
    users=("alice",),
)

TABLE = [
    # What we know.
    ("key hunter2-hunter2!", "key ***!"),
    (f"in JSON {json.dumps(ALICE.secrets[1])}", 'in JSON "***"'),
    (f"in JSON {json.dumps(ALICE.secrets[1], ensure_ascii=False)}", 'in JSON "***"'),
    ("in an address say%20%22%C3%BC%22%20%5C%20it%27s.", "in an address ***."),
    # Join codes.
    (f"supervisor join {CODE}", "supervisor join 192.168.1.9:8101,[fd00::1]:8101/***/***"),
    (
        f"SUPERVISOR_JOIN_CODE={CODE} sh",
        "SUPERVISOR_JOIN_CODE=192.168.1.9:8101,[fd00::1]:8101/***/*** sh",
    ),
    # Tokens that show by themselves.
    (f"using {HUB}.", "using ***."),
    (f"x {OURS}", "x ***"),
    (json.dumps({"message": f"new key\n{OURS}"}), '{"message": "new key\\n***"}'),
    (f"\x1b[1m{OURS}\x1b[0m %20{OURS}", "\x1b[1m***\x1b[0m %20***"),
    (f"['supervisor', 'status', '--key', '{OURS}']", "['supervisor', 'status', '--key', '***']"),
    (
        "a task-force-of-thirty-two-characters-x, task-",
        "a task-force-of-thirty-two-characters-x, task-",
    ),
    ("a task-list of hf_hub_download, hf_repo", "a task-list of hf_hub_download, hf_repo"),
    # Headers.
    ("Authorization: Bearer abc.def", "Authorization: ***"),
    ("-H 'authorization: Basic dTpw' -v", "-H 'authorization: ***' -v"),
    ('{"Authorization": "Bearer abc", "a": 1}', '{"Authorization": "***", "a": 1}'),
    (
        "(b'authorization', b'x'), ('authorization', 'Bearer abc')",
        "(b'authorization', b'***'), ('authorization', '***')",
    ),
    ("got bearer abcdefgh1234", "got bearer ***"),
    ("Cookie: supervisor_key=abc; x=y", "Cookie: ***"),
    ("X-Api-Key: abc", "X-Api-Key: ***"),
    # Variables of the environment.
    ("HF_TOKEN=abc next", "HF_TOKEN=*** next"),
    ("env MY_PASSWORD='it'\"'\"'s' run", "env MY_PASSWORD='***' run"),
    ('export AWS_SECRET_ACCESS="a b c"', 'export AWS_SECRET_ACCESS="***"'),
    ('{"HF_TOKEN": "a\\"b", "n_tokens": 5}', '{"HF_TOKEN": "***", "n_tokens": 5}'),
    ("{'HF_TOKEN': 'abc', 'x': 1}", "{'HF_TOKEN': '***', 'x': 1}"),
    (r'{"message": "{\"MY_KEY\": \"a b\"}"}', r'{"message": "{\"MY_KEY\": \"***\"}"}'),
    ('{"HF_TOKEN": "cut off', '{"HF_TOKEN": "***" off'),
    ('"command": "env MY_KEY=abc llama-server"', '"command": "env MY_KEY=*** llama-server"'),
    # Options and fields.
    ("llama-server --api-key abc -c 5", "llama-server --api-key *** -c 5"),
    ("supervisor status --key=abc", "supervisor status --key=***"),
    ('["--hf-token",\n  "abc", "-c"]', '["--hf-token",\n  "***", "-c"]'),
    ('{"token": "abc", "name": "phone"}', '{"token": "***", "name": "phone"}'),
    ("password: abc", "password: ***"),
    # Addresses.
    ("https://me:pw@host/x", "https://***@host/x"),
    ("https://host/x?a=1&X-Amz-Signature=abc&b=2", "https://host/x?a=1&X-Amz-Signature=***&b=2"),
    # Private keys, whole or cut.
    (f"before\n{PEM}\nafter", "before\n***\nafter"),
    (json.dumps({"key": PEM}), '{"key": "***"}'),
    ("before\n" + PEM[:50], "before\n***"),
    (PEM[40:] + "\nafter\n" + PEM, "***\nafter\n***"),
    # Homes and users.
    ("/srv/people/alice/models/x.gguf", "~/models/x.gguf"),
    ("/srv/people/alice2/x", "/srv/people/alice2/x"),
    ("open /home/bob/x, /Users/Carol/y", "open ~/x, ~/y"),
    ("file:///home/bob", "file://~"),
    ("'/" + "root/.cache'", "'~/.cache'"),  # two parts: no such path stands in this repository
    ("/data/data/com.termux/files/home/x", "/data/data/com.termux/files/home/x"),
    ("/usr/home/x /rootfs /root.img", "/usr/home/x /rootfs /root.img"),
    ("Alice on alices-mac, alice-laptop, malice", "user on alices-mac, user-laptop, malice"),
]

KEPT = """\
llama_model_loader: - kv  12: tokenizer.ggml.model str = gpt2
print_info: EOS token        = 2 '</s>'
n_tokens = 512, n_past = 3; prompt eval time = 5.1 ms / 3 tokens (1.7 ms per token)
load_tensors: layer 3 assigned to device RPC0[10.0.0.2:8110], is_swa = 0
12:00:01.123 INFO    desk/supervisor/launch-3 deployment.state_changed from=starting to=ready
"tokens_per_second": 12.5, "ctx_tokens": 4096, "max_tokens": null
"key": "value", "eos_token": "</s>"
CUDA error: out of memory at /build/ggml/src/ggml-cuda.cu:88
http://127.0.0.1:8100/api/launches/3/report 10.0.0.2:8110/x
the join token is used; print a new join code with 'supervisor invite'
"""


@pytest.mark.parametrize(("text", "masked"), TABLE)
def test_a_secret_goes_and_the_rest_stays(text: str, masked: str) -> None:
    assert mask(text, ALICE) == masked
    assert mask(masked, ALICE) == masked, "again"


@pytest.mark.parametrize("line", KEPT.splitlines())
def test_logs_stay_as_they_are(line: str) -> None:
    assert mask(line, ALICE) == line


def test_short_secrets_and_common_names_tear_no_holes() -> None:
    private = Private(("1", "true", "", "******"), ("/", ""), ("root", "llama", "", "al"))
    assert mask(KEPT, private) == KEPT


def test_the_longest_secret_goes_first() -> None:
    assert mask("abcdef-ghijkl", Private(("abcdef", "abcdef-ghijkl"))) == "***"


def test_secrets_of_the_environment_are_told_by_name() -> None:
    environment = {
        "HF_TOKEN": "a",
        "aws_secret": "b",
        "MY_KEY_2": "c",
        "DB_PASSWORD": "d",
        "PATH": "/bin",
        "HOME": "/root",
    }
    assert sorted(secrets_of(environment)) == ["a", "b", "c", "d"]


word = st.text(string.ascii_letters + string.digits + "-_", min_size=6, max_size=40)
around = st.text(max_size=60)


@given(st.lists(word, min_size=1, max_size=4), st.lists(around, min_size=5, max_size=5))
def test_no_known_secret_is_left_wherever_it_stands(secrets: list[str], texts: list[str]) -> None:
    text = "".join(t + s for t, s in zip(texts, [*secrets, *secrets], strict=False))
    masked = mask(text, Private(tuple(secrets), users=("zoe",)))
    for secret in secrets:
        assert secret not in masked


@given(
    st.sampled_from(["HF_TOKEN", "MY_API_KEY", "SUPERVISOR_KEY", "db_password", "client_secret"]),
    st.text(st.characters(codec="utf-8"), min_size=6, max_size=30),
    around,
)
def test_a_field_of_json_keeps_its_name_and_loses_its_value(
    name: str, value: str, other: str
) -> None:
    text = json.dumps({"before": 1, name: f"zq{value}qz", "after": other})
    masked = json.loads(mask(text, Private()))
    assert masked[name] == "***"
    assert masked["before"] == 1
    assert list(masked) == ["before", name, "after"]


@given(st.lists(st.sampled_from([text for text, _ in TABLE]) | around, max_size=6))
def test_masking_again_changes_nothing(texts: list[str]) -> None:
    once = mask("\n".join(texts), ALICE)
    assert mask(once, ALICE) == once


@given(st.recursive(st.none() | st.booleans() | st.integers() | around, st.lists, max_leaves=8))
def test_json_stays_json(value: object) -> None:
    json.loads(mask(json.dumps({"TOKENS": value, "PASSWORD": value, "x": value}), ALICE))


@pytest.mark.parametrize(
    "piece",
    [
        "A",
        "a",
        "a-",
        "sk-",
        "\\",
        '"',
        "KEY=",
        "a:",
        " ",
        'TOKEN="',
        "TOKEN='a'",
        "/home/",
        "--key ",
    ],
)
def test_it_takes_no_quadratic_time(piece: str) -> None:
    mask(piece * (400_000 // len(piece)), ALICE)  # minutes, if it did
