"""``install.sh --main-host``: what has wheels is installed, what has none is named beforehand."""

import os
import re
import subprocess
import tomllib
import zipfile
from pathlib import Path

import pytest
from lab.phone import Phone, assert_one_error, fresh_phone, install_script

ROOT = Path(__file__).parents[2]
PIP = Path(__file__).parents[1] / "fakes" / "pip.py"
HUB_NEEDS = (
    "filelock>=3.10.0",
    'hf-xet<2.0.0,>=1.6.0; platform_machine == "aarch64"',
    "pyyaml>=5.1",
    'torch; extra == "torch"',
)


def own_requirements() -> list[str]:
    found = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert isinstance(found, list)
    return found


def write_wheel(path: Path, needs: list[str] | tuple[str, ...], program: str = "") -> None:
    name, version, *_ = path.stem.split("-")
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {need}" for need in needs]
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}-{version}.dist-info/METADATA", "\n".join(lines) + "\n\n")
        if program:
            wheel.writestr("supervisor/__init__.py", "")
            wheel.writestr("supervisor/__main__.py", program)


@pytest.fixture
def phone(tmp_path: Path) -> Phone:
    """With an index that has everything, and packages that bring what they are named for."""
    made = fresh_phone(tmp_path)
    shop = made.folder / "shop"
    program = "import sys; print('supervisor', *sys.argv[1:])"
    write_wheel(shop / "llama_rpc_supervisor-0.1.0-py3-none-any.whl", own_requirements(), program)
    write_wheel(shop / "huggingface_hub-2.4.0-py3-none-any.whl", HUB_NEEDS)
    (shop / "pip.py").write_bytes(PIP.read_bytes())
    made.environment["PYTHONPATH"] = str(made.prefix / "site")
    made.command(
        "pkg",
        """shift 2
for name in "$@"; do
    case $name in
        python) cp "$SHOP/python" "$PREFIX/bin/" ;;
        python-pip) cp "$SHOP/pip.py" "$PREFIX/site/" ;;
        *) : >"$PREFIX/site/${name#python-}.py" ;;
    esac
done""",
    )
    return made


def pip_calls(phone: Phone) -> list[str]:
    return [call for call in phone.calls() if call.startswith("pip ")]


async def test_a_phone_becomes_a_main_host_without_a_compiler(phone: Phone) -> None:
    done = await phone.run(install_script(), "--main-host")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "supervisor engine install" in done.stdout
    assert "pkg install -y python python-pip python-psutil python-cryptography" in phone.calls()

    tried: list[str] = []
    installed: list[str] = []
    for call in pip_calls(phone):
        (tried if "--dry-run" in call else installed).append(call)
    first = next(call for call in installed if call.startswith("pip install"))
    assert phone.calls().index(tried[-1]) < phone.calls().index(first), "all is tried first"
    for call in pip_calls(phone):
        if call.startswith("pip install") and "pyyaml" not in call and ".whl" not in call:
            assert "--only-binary=:all:" in call
            assert "--extra-index-url https://termux-user-repository.github.io/pypi/" in call

    command = phone.prefix / "bin/supervisor"
    answer = subprocess.run(
        ["sh", command, "up", "--host", "0.0.0.0"],
        env=phone.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout == "supervisor up --host 0.0.0.0\n"
    assert phone.calls()[-1] == "termux-wake-lock "
    assert os.access(command, os.X_OK)
    assert list((phone.prefix / "tmp").iterdir()) == []


async def test_what_is_asked_of_pip_is_all_but_what_phones_cannot_have(phone: Phone) -> None:
    keep = "install --dry-run"
    text = PIP.read_text().replace(
        "    wanted = list(requirements(argv))\n",
        "    wanted = list(requirements(argv))\n"
        f"    if '-r' in argv and ' '.join(argv).startswith({keep!r}):\n"
        "        Path(os.environ['SHOP'], 'asked').write_text('\\n'.join(wanted))\n",
    )
    (phone.folder / "shop/pip.py").write_text(text)
    done = await phone.run(install_script(), "--main-host")
    assert done.returncode == 0, done.stderr
    asked = (phone.folder / "shop/asked").read_text().splitlines()
    own = [need for need in own_requirements() if not need.startswith("huggingface-hub")]
    assert asked == [*own, "filelock>=3.10.0"]
    hub = next(need for need in own_requirements() if need.startswith("huggingface-hub"))
    assert any(call.startswith("pip download") and call.endswith(hub) for call in phone.calls())


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("pydantic-core", ["pydantic has no wheel", "pkg install python-pydantic-core"]),
        ("cryptography", ["cryptography has no wheel", "pkg install python-cryptography"]),
        ("segno rich", ["segno has no wheel", "rich has no wheel", "pkg upgrade"]),
    ],
)
async def test_what_has_no_wheel_is_named_before_anything_is_installed(
    phone: Phone, missing: str, words: list[str]
) -> None:
    phone.environment["NO_WHEEL"] = missing
    done = await phone.run(install_script(), "--main-host")
    assert done.returncode == 1
    for word in words:
        assert word in done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == len(missing.split()) + 1, "others that need the missing one are not named"
    assert lines[-1].startswith("error: nothing was installed, for pip cannot have")
    assert not [call for call in pip_calls(phone) if re.match(r"pip install (?!--dry-run)", call)]
    assert phone.snapshot() == {}
    assert not (phone.prefix / "bin/supervisor").exists()


async def test_a_second_run_keeps_the_environment_and_a_new_python_gets_a_new_one(
    phone: Phone,
) -> None:
    assert (await phone.run(install_script(), "--main-host")).returncode == 0
    mark = phone.data / "program" / "mark"
    mark.write_text("")
    command = (phone.prefix / "bin/supervisor").stat().st_mtime_ns
    packages = [call for call in phone.calls() if call.startswith("pkg ")]
    done = await phone.run(install_script(), "--main-host")
    assert done.returncode == 0, done.stderr
    assert mark.exists()
    assert (phone.prefix / "bin/supervisor").stat().st_mtime_ns == command
    assert [call for call in phone.calls() if call.startswith("pkg ")] == packages
    # As after 'pkg upgrade': the environment's interpreter is gone.
    (phone.data / "program/bin/python").unlink()
    done = await phone.run(install_script(), "--main-host")
    assert done.returncode == 0, done.stderr
    assert not mark.exists()


async def test_a_wheel_may_be_named(phone: Phone) -> None:
    wheel = phone.folder / "shop/llama_rpc_supervisor-0.1.0-py3-none-any.whl"
    done = await phone.run(install_script(), "--main-host", "--from", str(wheel))
    assert done.returncode == 0, done.stderr
    (made,) = [call for call in phone.calls() if call.startswith("pip wheel")]
    assert made.endswith(f" {wheel}")


async def test_a_source_that_is_none_is_told(phone: Phone) -> None:
    done = await phone.run(install_script(), "--main-host", "--from", "/nowhere.whl")
    assert_one_error(done, "cannot make a wheel of /nowhere.whl", "does not exist", "--from")


async def test_failing_packages_are_told(phone: Phone) -> None:
    phone.command("pkg", "exit 100")
    done = await phone.run(install_script(), "--main-host")
    assert_one_error(done, "pkg could not install", "python-cryptography", "pkg update")


@pytest.mark.parametrize("arguments", [["--from"], ["--bad"], ["code", "pin"]])
async def test_wrong_usage(phone: Phone, arguments: list[str]) -> None:
    done = await phone.run(install_script(), "--main-host", *arguments)
    assert done.returncode == 2
    assert done.stderr == "usage: sh install.sh --main-host [--from PATH_OR_URL]\n"


async def test_an_old_android_is_told_apart(phone: Phone) -> None:
    phone.environment["SDK"] = "27"
    assert_one_error(await phone.run(install_script(), "--main-host"), "API level 27")
