"""Every error has a code of its own and a section in docs/errors.md, and the other way round."""

import inspect
import re
from pathlib import Path

import pytest

import agents.errors
import supervisor.errors
from agents.errors import ProjectError
from supervisor.api.problems import status_of

ERRORS_MD = Path(__file__).parents[2] / "docs" / "errors.md"


def tree() -> list[type[ProjectError]]:
    """Every class of both trees but the root."""
    members = {**vars(agents.errors), **vars(supervisor.errors)}.values()
    return [
        m
        for m in members
        if inspect.isclass(m) and issubclass(m, ProjectError) and m is not ProjectError
    ]


LEAVES = [kind for kind in tree() if not any(k is not kind and issubclass(k, kind) for k in tree())]


def sections() -> dict[str, str]:
    """Text of docs/errors.md by heading."""
    parts = re.split(r"^## (.*)$", ERRORS_MD.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_no_code_is_used_twice() -> None:
    codes = [kind.code for kind in LEAVES]
    assert sorted(set(codes)) == sorted(codes)


@pytest.mark.parametrize("kind", LEAVES, ids=lambda kind: kind.__name__)
def test_a_leaf_has_a_code_of_its_own_named_after_it(kind: type[ProjectError]) -> None:
    assert kind.code != "error"
    assert "code" in vars(kind)
    assert kind.code == re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()


@pytest.mark.parametrize("kind", LEAVES, ids=lambda kind: kind.__name__)
def test_a_leaf_says_what_it_is_and_has_a_status(kind: type[ProjectError]) -> None:
    assert kind.__doc__
    assert 400 <= status_of(kind.__new__(kind)) < 600


def test_bases_say_whose_problem_it_is_and_have_no_code() -> None:
    bases = [kind for kind in tree() if kind not in LEAVES]
    assert bases
    for kind in bases:
        assert kind.__name__.endswith("Error")
        assert kind.code == "error"


def test_the_document_has_one_section_per_code_in_order() -> None:
    headings = re.findall(r"^## (.*)$", ERRORS_MD.read_text(), flags=re.MULTILINE)
    codes = sorted(kind.code for kind in LEAVES)
    assert sorted(set(codes) - set(headings)) == [], "codes without a section"
    assert sorted(set(headings) - set(codes)) == [], "sections without a code"
    assert headings == codes


@pytest.mark.parametrize("code", sorted(sections()))
def test_a_section_is_short_and_says_what_to_do(code: str) -> None:
    lines = [line for line in sections()[code].splitlines() if line]
    assert 2 <= len(lines) <= 6
    assert "**To do:**" in sections()[code]
