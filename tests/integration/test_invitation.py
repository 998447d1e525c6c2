"""The lines that devices join with, as the command line prints them."""

import json

import pytest
from cluster import START_S, Cluster, eventually
from test_cli import cli


async def test_one_line_alone_can_be_printed(cluster: Cluster) -> None:
    await cluster.supervisor()
    for platform, script in (("termux", "install.sh"), ("macos", "join.sh"), ("linux", "join.sh")):
        done = await cli(cluster, "invite", "--platform", platform)
        (line,) = done.stdout.splitlines()
        assert line.startswith("curl -fsSk --noproxy '*' --pinnedpubkey 'sha256//")
        assert f"/files/{script} -o " in line
        assert "SUPERVISOR_JOIN_CODE=" in line


async def test_without_a_platform_every_line_stands_on_its_own(cluster: Cluster) -> None:
    await cluster.supervisor()
    done = await cli(cluster, "invite")
    code, phones, computers = done.stdout.splitlines()
    assert code in phones
    assert phones.startswith("on a phone, in Termux  curl ")
    assert computers.startswith("on a Mac, or on Linux, or in WSL2  curl ")


async def test_an_unknown_platform_is_wrong_usage(cluster: Cluster) -> None:
    await cluster.supervisor()
    done = await cli(cluster, "invite", "--platform", "windows")
    assert done.returncode == 2
    assert "termux" in done.stderr


@pytest.mark.parametrize("platform", [None, "termux"])
async def test_the_start_shows_the_lines(cluster: Cluster, platform: str | None) -> None:
    data = str(cluster.folder / "supervisor")
    more = ["--platform", platform] if platform else ["--json"]
    arguments = ["--data", data, "--no-agent", "--port", "0", "--join-port", "0"]
    arguments += ["--join-host", "127.0.0.1", *more]
    log = cluster.folder / "start.log"
    program = cluster.run("start", "supervisor", "up", *arguments)

    async def has_said() -> bool:
        assert program.process.poll() is None, program.said()
        return "supervisor.started" in log.read_text() and "curl" in log.read_text()

    await eventually(has_said, within_s=START_S, what="the supervisor starts")
    said = log.read_text()
    if platform:
        lines = [line for line in said.splitlines() if "curl" in line]
        assert len(lines) == 1
        assert "/files/install.sh" in lines[0]
    else:
        start = json.loads(said[said.index("{") : said.rindex("}") + 1])
        assert list(start["lines"]) == ["termux", "macos", "linux"]
        assert start["join_code"] in start["lines"]["linux"]
