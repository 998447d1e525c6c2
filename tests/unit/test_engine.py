"""Finding llama.cpp: where it is looked for, in which order, and what a build turns out to be."""

from pathlib import Path

import pytest

from agents import engine
from agents.contract import EngineFacts
from agents.errors import EngineMissing, EngineUnusable

ENVIRON = {"PATH": "/usr/bin:/bin"}


def executable(path: Path, script: str = "exit 0") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def build(folder: Path, *names: str) -> Path:
    """A folder with fake programs."""
    for name in names or ("llama-server", "ggml-rpc-server"):
        executable(folder / name)
    return folder


def sources(found: list[EngineFacts], within: Path) -> list[tuple[str, str]]:
    """Source and folder of each engine below ``within``; this host may have others."""
    return [
        (f.source, str(Path(f.folder).relative_to(within)))
        for f in found
        if Path(f.folder).is_relative_to(within)
    ]


def test_places_are_searched_from_the_most_to_the_least_deliberate(tmp_path: Path) -> None:
    build(tmp_path / "named")
    build(tmp_path / "engines" / "b7000" / "bin")
    build(tmp_path / "engines" / "b8000")
    build(tmp_path / "path")
    build(tmp_path / "home" / "llama.cpp" / "build" / "bin")
    environ = {
        "LLAMA_CPP_BIN": str(tmp_path / "named"),
        "PATH": f"{tmp_path / 'path'}:/bin",
        "HOME": str(tmp_path / "home"),
    }
    found = engine.discover(environ, own_engines=tmp_path / "engines")
    assert sources(found, tmp_path) == [
        ("LLAMA_CPP_BIN", "named"),
        ("engines folder", "engines/b8000"),
        ("engines folder", "engines/b7000/bin"),
        ("PATH", "path"),
        ("home folder", "home/llama.cpp/build/bin"),
    ]


def test_one_build_found_twice_is_one_engine(tmp_path: Path) -> None:
    real = build(tmp_path / "real")
    (tmp_path / "link").symlink_to(real)
    environ = {"LLAMA_CPP_BIN": str(tmp_path / "link"), "PATH": str(real)}
    assert sources(engine.discover(environ), tmp_path) == [("LLAMA_CPP_BIN", "link")]


def test_a_program_linked_into_the_path_is_followed_to_its_folder(tmp_path: Path) -> None:
    real = build(tmp_path / "cellar")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "llama-server").symlink_to(real / "llama-server")
    found = engine.discover({"PATH": str(tmp_path / "bin")})
    assert sources(found, tmp_path) == [("PATH", "cellar")]


@pytest.mark.parametrize(
    ("names", "rpc_server"),
    [
        (("ggml-rpc-server", "rpc-server"), "ggml-rpc-server"),
        (("rpc-server",), "rpc-server"),
        (("llama-server",), ""),
    ],
)
def test_the_rpc_server_is_known_under_both_its_names(
    tmp_path: Path, names: tuple[str, ...], rpc_server: str
) -> None:
    build(tmp_path, *names)
    [found] = engine.discover(ENVIRON, explicit=tmp_path)
    assert found.rpc_server == (str(tmp_path / rpc_server) if rpc_server else "")
    assert bool(found.llama_server) is ("llama-server" in names)


def test_an_explicit_folder_is_the_only_one(tmp_path: Path) -> None:
    build(tmp_path / "asked")
    environ = {"LLAMA_CPP_BIN": str(build(tmp_path / "named")), "PATH": "/bin"}
    [found] = engine.discover(environ, explicit=tmp_path / "asked")
    assert (found.source, found.folder) == ("setting", str(tmp_path / "asked"))


@pytest.mark.parametrize("made", [True, False], ids=["empty", "missing"])
def test_an_explicit_folder_without_programs_is_an_error(tmp_path: Path, made: bool) -> None:
    folder = tmp_path / "asked"
    if made:
        folder.mkdir()
    with pytest.raises(EngineMissing, match=r"asked holds neither llama-server nor .*DGGML_RPC"):
        engine.discover(ENVIRON, explicit=folder)


@pytest.mark.parametrize(
    ("script", "code", "says"),
    [
        (
            'case "$*" in *--rpc*) echo "error: invalid argument: --rpc"; exit 1;; esac\n'
            "echo 'version: 7527 (abc1234)'",
            "engine_without_rpc",
            "llama-server was built without RPC; rebuild with -DGGML_RPC=ON",
        ),
        (
            'case "$*" in *--rpc*) echo "RPC not supported in this build"; exit 1;; esac\n'
            "echo 'version: 7527 (abc1234)'",
            "engine_without_rpc",
            "was built without RPC",
        ),
        ("echo 'version: 7527 (abc1234)'", "engine_without_rpc", "holds no ggml-rpc-server"),
        ("echo no such library; exit 127", "engine_unusable", "(status 127): no such library"),
        ("exit 1", "engine_unusable", "(status 1): no output"),
    ],
)
async def test_an_engine_that_cannot_serve_says_why(
    tmp_path: Path, script: str, code: str, says: str
) -> None:
    executable(tmp_path / "llama-server", script)
    [found] = engine.discover(ENVIRON, explicit=tmp_path)
    inspected = await engine.inspect(found, ENVIRON)
    assert inspected.problem_code == code
    assert says in inspected.problem
    assert not inspected.has_rpc


@pytest.mark.parametrize(
    ("text", "version", "commit"),
    [
        ("version: 7527 (abc1234)", "7527", "abc1234"),
        ("version: 0.5.0-dev (build 1, commit 0c1e570)", "0.5.0-dev", "0c1e570"),
        ("version: 9999", "9999", "9999"),
    ],
)
async def test_the_version_of_each_generation_is_read(
    tmp_path: Path, text: str, version: str, commit: str
) -> None:
    executable(tmp_path / "llama-server", f"echo '{text}'; echo 'built with GNU 12.2.0'")
    [found] = engine.discover(ENVIRON, explicit=tmp_path)
    inspected = await engine.inspect(found, ENVIRON)
    assert (inspected.version, inspected.build) == (version, commit)


async def test_an_rpc_server_that_dies_is_unusable_with_its_last_line(tmp_path: Path) -> None:
    executable(tmp_path / "rpc-server", "echo 'no Vulkan driver'; exit 1")
    [found] = engine.discover(ENVIRON, explicit=tmp_path)
    inspected = await engine.inspect(found, ENVIRON)
    assert inspected.problem_code == "engine_unusable"
    assert inspected.problem.endswith("does not answer HELLO: no Vulkan driver")


async def test_a_file_that_is_no_program_is_unusable(tmp_path: Path) -> None:
    executable(tmp_path / "llama-server").write_bytes(b"\x7fELF of another processor")
    with pytest.raises(EngineUnusable, match="cannot be run here"):
        await engine.run([str(tmp_path / "llama-server"), "--version"], ENVIRON)


async def test_a_program_that_hangs_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_COMMAND_DEADLINE_S", 0.1)
    executable(tmp_path / "llama-server", "exec sleep 60")
    with pytest.raises(EngineUnusable, match=r"did not end within 0\.1 s"):
        await engine.run([str(tmp_path / "llama-server")], ENVIRON)


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        (["  CPU: Ryzen 5 (16000 MiB, 16000 MiB free)"], ["CPU"]),
        (
            [
                "  CUDA0: RTX 4090 (24000 MiB, 23000 MiB free)",
                "  BLAS: OpenBLAS (0 MiB, 0 MiB free)",
                "  CPU: Ryzen 5 (16000 MiB, 16000 MiB free)",
            ],
            ["CUDA0"],
        ),
        (["error: unknown device: ?", "available devices:"], []),
    ],
)
async def test_devices_are_what_the_rpc_server_would_offer(
    tmp_path: Path, lines: list[str], names: list[str]
) -> None:
    text = "\n".join(lines)
    program = executable(tmp_path / "rpc-server", f"cat <<'E'\n{text}\nE\nexit 1")
    facts = EngineFacts(str(tmp_path), "setting", rpc_server=str(program))
    found = await engine.ggml_devices(facts, ENVIRON)
    assert [device.name for device in found] == names
    assert all(d.total_bytes >= d.free_bytes > 1 << 30 for d in found)


# -- engines that the main host gave -----------------------------------------------------------


def test_the_build_that_the_main_host_told_to_use_comes_before_newer_ones(tmp_path: Path) -> None:
    own = tmp_path / "engines"
    for name in ("b999", "b10000", "b10001.new", ".hidden"):
        build(own / name / "bin")
    assert sources(engine.discover(ENVIRON, own_engines=own), tmp_path) == [
        ("engines folder", "engines/b10000/bin"),
        ("engines folder", "engines/b999/bin"),
    ]
    engine.InUse(str(own / "b999" / "bin")).write(own / engine.IN_USE_FILE)
    assert sources(engine.discover(ENVIRON, own_engines=own), tmp_path)[0] == (
        "main host",
        "engines/b999/bin",
    )
    build(tmp_path / "named")
    named = {**ENVIRON, "LLAMA_CPP_BIN": str(tmp_path / "named")}
    found = engine.discover(named, own_engines=own)
    assert sources(found, tmp_path)[0] == ("LLAMA_CPP_BIN", "named")
    assert found[0].is_fixed
    assert not found[1].is_fixed


@pytest.mark.parametrize("text", ["", "{", "[]", '{"before": "x"}', "null"])
def test_a_note_that_cannot_be_read_is_none(tmp_path: Path, text: str) -> None:
    own = tmp_path / "engines"
    build(own / "b8000")
    (own / engine.IN_USE_FILE).write_text(text)
    assert sources(engine.discover(ENVIRON, own_engines=own), tmp_path) == [
        ("engines folder", "engines/b8000")
    ]


def test_what_the_main_host_called_it_is_beside_the_programs(tmp_path: Path) -> None:
    folder = build(tmp_path / "b1" / "llama-b1")
    assert engine.programs_folder(tmp_path / "b1") == folder
    engine.write_names(folder, engine.Names("b1", "ubuntu-x64", "b1"))
    found = engine.at_folder(folder, "main host")
    assert found is not None
    assert (found.release, found.variant, found.build) == ("b1", "ubuntu-x64", "")
    assert engine.name_of(found) == "b1"
    (folder / "llama-server").unlink()
    lone = engine.at_folder(folder, "main host")
    assert lone is not None
    assert lone.build == "b1", "rpc-server alone has no word for it"
    (folder / engine.FACTS_FILE).write_text("[")
    assert engine.at_folder(folder, "main host") is not None


@pytest.mark.parametrize(
    ("release", "commit", "called", "is_it"),
    [
        ("b10516", "0c1e570", "b10516", True),
        ("b10516", "0c1e570", "0c1e570ab", True),
        ("b10516", "0c1e570", "0c1e5", False),
        ("", "0c1e570", "b10516", False),
        ("b1", "0c1e570", "b10", False),
        ("", "", "0c1e570", False),
    ],
)
def test_what_operators_call_a_build(release: str, commit: str, called: str, is_it: bool) -> None:
    facts = EngineFacts("/x", "PATH", build=commit, release=release)
    assert engine.is_called(facts, called) is is_it
