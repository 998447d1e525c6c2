"""docs/doctor.md describes every check by its name, and no other."""

import inspect
import re
from pathlib import Path

from agents import network_findings
from agents.doctor.examination import CHECKS
from agents.doctor.findings import TITLES
from supervisor.core import doctor

DOCS = Path(__file__).parents[2] / "docs" / "doctor.md"


def documented() -> list[str]:
    return re.findall(r"^\| `(\w+)` \|", DOCS.read_text(), re.MULTILINE)


def of_networks() -> set[str]:
    source = inspect.getsource(network_findings)
    return set(re.findall(r"Finding\(\s*\"(\w+)\"", source))


def test_the_page_has_one_row_for_every_check() -> None:
    rows = documented()
    assert len(rows) == len(set(rows))
    assert set(rows) == set(TITLES) | set(doctor.TITLES) | of_networks()


def test_every_title_belongs_to_a_check_and_every_check_has_one() -> None:
    assert {name for check in CHECKS for name in check.names} == set(TITLES)


def test_no_check_of_a_device_has_the_name_of_one_from_the_main_host() -> None:
    assert not set(TITLES) & set(doctor.TITLES)
