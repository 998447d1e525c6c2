"""The join code, and the identity that an agent gets for it."""

import re
import stat
from pathlib import Path

import pytest

from agents.contract import JoinReply
from agents.errors import BadJoinCode
from agents.join import Identity, JoinCode
from supervisor.adapters.authority import Authority

PRINT = "A" * 43


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"10.0.0.1:8101/token/{PRINT}", JoinCode(("10.0.0.1:8101",), "token", PRINT)),
        (f"  10.0.0.1:8101/token/{PRINT}\n", JoinCode(("10.0.0.1:8101",), "token", PRINT)),
        (
            f"desk.local:1,100.64.0.9:2/t-_/{PRINT}",
            JoinCode(("desk.local:1", "100.64.0.9:2"), "t-_", PRINT),
        ),
    ],
)
def test_a_join_code_is_read(text: str, expected: JoinCode) -> None:
    assert JoinCode.parse(text) == expected
    assert JoinCode.parse(str(expected)) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not of the form ADDRESS:PORT/TOKEN/FINGERPRINT; copy the whole line"),
        ("10.0.0.1:8101", "not of the form"),
        ("10.0.0.1:8101/token", "not of the form"),
        ("10.0.0.1:8101/token/", "not of the form"),
        (f"10.0.0.1:8101//{PRINT}", "not of the form"),
        (f"https://10.0.0.1:8101/token/{PRINT}", "not of the form"),
        (f"10.0.0.1/token/{PRINT}", "'10.0.0.1' in the join code is not ADDRESS:PORT"),
        (f":8101/token/{PRINT}", "is not ADDRESS:PORT"),
        (f"10.0.0.1:x/token/{PRINT}", "is not ADDRESS:PORT"),
        (f"10.0.0.1:1,/token/{PRINT}", "is not ADDRESS:PORT"),
        (f"10.0.0.1:8101/token/{PRINT[:-1]}", "has 42 characters, not 43; copy the whole code"),
    ],
)
def test_a_code_that_was_cut_or_mistyped_is_refused_with_the_reason(text: str, says: str) -> None:
    with pytest.raises(BadJoinCode, match=re.escape(says)):
        JoinCode.parse(text)


def test_an_identity_belongs_to_the_cluster_that_gave_it(tmp_path: Path) -> None:
    ours, others = Authority(tmp_path / "ours"), Authority(tmp_path / "others")
    identity = Identity(tmp_path / "identity")
    assert not identity.belongs_to(ours.fingerprint)
    issued = ours.issue("agent-1")
    identity.store(JoinReply(issued.certificate_pem, issued.key_pem, ours.certificate_pem))
    assert identity.belongs_to(ours.fingerprint)
    assert not identity.belongs_to(others.fingerprint)
    assert stat.S_IMODE(identity.key.stat().st_mode) == 0o600
    assert stat.S_IMODE(identity.folder.stat().st_mode) == 0o700
    identity.forget()
    identity.forget()
    assert not identity.belongs_to(ours.fingerprint)
    assert list(identity.folder.iterdir()) == []


def test_half_an_identity_is_none(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    identity = Identity(tmp_path / "identity")
    issued = authority.issue("agent-1")
    identity.store(JoinReply(issued.certificate_pem, issued.key_pem, authority.certificate_pem))
    identity.key.unlink()
    assert not identity.belongs_to(authority.fingerprint)
