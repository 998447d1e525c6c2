"""A stand-in for the site of llama.cpp's releases, with the faults that the real one shows.

It answers at two loopback ports, as the real one does from two hosts: releases and redirects at the
first, archives at the second. Archives are packed from the engine that the tests run, or made of
programs that have a header and nothing else, for machines that are not here.
"""

import hashlib
import io
import json
import platform
import re
import struct
import tarfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from agents.contract import EngineFacts
from supervisor.adapters.engine_archives import Packed, pack
from supervisor.adapters.engine_packing import files_of
from supervisor.core.engine_builds import machine_word

OWN_VARIANT = f"ubuntu-{machine_word(platform.machine())}"
"""The archive that the machine of the tests can run."""
ANDROID = "android-arm64"
OTHER_VARIANT = "ubuntu-s390x"
PIECE_BYTES = 16 * 1024
ENDS_WITHIN_S = 10.0
SILENT_S = 60.0

_MACHINES = {"x64": 62, "arm64": 183, "s390x": 22}
_LOADERS = {"android": "/system/bin/linker64", "ubuntu": "/lib64/ld-linux.so.2"}


@dataclass
class Asked:
    """One request, and how many bytes of an answer left."""

    server: str
    path: str
    range: str
    authorization: str
    sent: int = 0


@dataclass
class Faults:
    """What goes wrong now; tests change it while the site runs."""

    cut_after: int = 0
    """Bytes of an archive, then it hangs up, or keeps ``silent``."""
    silent: bool = False
    cuts: int = 1_000_000
    """How often."""
    wrong_byte: bool = False
    has_ranges: bool = True
    has_etag: bool = True
    has_digests: bool = True
    status: int = 0
    """Of the site, with ``headers``; ``refusals`` times."""
    headers: dict[str, str] = field(default_factory=dict)
    refusals: int = 1_000_000
    store_status: int = 0
    pause_s: float = 0.0
    """Between pieces of an archive."""


@dataclass
class ReleaseSiteStandIn:
    """A running stand-in. ``requests`` grows while it is asked."""

    url: str = ""
    store: str = ""
    builds: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Archives by name, of each build; the last is the newest."""
    faults: Faults = field(default_factory=Faults)
    requests: list[Asked] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    is_ending: threading.Event = field(default_factory=threading.Event)

    def add(self, build: str, variants: dict[str, bytes]) -> None:
        """A release with these archives, named as upstream names them."""
        named = {archive_name(build, variant): content for variant, content in variants.items()}
        self.builds[build] = named

    @property
    def stored_bytes(self) -> int:
        """Of archives, sent so far."""
        return sum(asked.sent for asked in self.requests if asked.server == "store")

    @property
    def ranges(self) -> list[str]:
        return [asked.range for asked in self.requests if asked.server == "store"]

    def release(self, build: str) -> dict[str, object]:
        """As the API of GitHub describes it, with files that are no engines."""
        assets: list[dict[str, object]] = []
        for name, content in self.builds[build].items():
            asset: dict[str, object] = {
                "name": name,
                "size": len(content),
                "state": "uploaded",
                "browser_download_url": f"{self.url}/download/{build}/{name}",
            }
            if self.faults.has_digests:
                asset["digest"] = f"sha256:{hashlib.sha256(content).hexdigest()}"
            assets.append(asset)
        ui = {"name": f"llama-{build}-ui.tar.gz", "size": 1, "browser_download_url": self.url}
        return {"tag_name": build, "assets": [*assets, ui]}


def archive_name(build: str, variant: str) -> str:
    return f"llama-{build}-bin-{variant}.tar.gz"


@contextmanager
def release_site() -> Iterator[ReleaseSiteStandIn]:
    """Serve until the block ends."""
    site = ReleaseSiteStandIn()
    handlers = [_handler(site, "site"), _handler(site, "store")]
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for handler in handlers]
    site.url, site.store = (f"http://127.0.0.1:{server.server_address[1]}" for server in servers)
    threads = [threading.Thread(target=server.serve_forever, daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield site
    finally:
        site.is_ending.set()
        for server in servers:
            server.shutdown()
            server.server_close()
        for thread in threads:
            thread.join(ENDS_WITHIN_S)


def _handler(site: ReleaseSiteStandIn, server: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            range_, who = self.headers.get("range", ""), self.headers.get("authorization", "")
            asked = Asked(server, urlsplit(self.path).path, range_, who)
            with site.lock:
                site.requests.append(asked)
            if server == "site":
                self._site(asked)
            else:
                self._store(asked)

        def _site(self, asked: Asked) -> None:
            faults, path = site.faults, asked.path
            if faults.status and faults.refusals > 0:
                faults.refusals -= 1
                self._answer(faults.status, b"{}", faults.headers)
            elif path.startswith("/download/"):
                where = path.removeprefix("/download")
                self._answer(302, b"", {"location": f"{site.store}{where}"})
            elif path == "/releases/latest" and site.builds:
                self._json(site.release(list(site.builds)[-1]))
            elif path.removeprefix("/releases/tags/") in site.builds:
                self._json(site.release(path.removeprefix("/releases/tags/")))
            else:
                self._answer(404, b"{}")

        def _store(self, asked: Asked) -> None:
            faults = site.faults
            build, _, name = asked.path.strip("/").partition("/")
            content = site.builds.get(build, {}).get(name)
            if content is None or faults.store_status:
                self._answer(faults.store_status or 404, b"")
                return
            if faults.wrong_byte:
                content = bytes([content[0] ^ 1]) + content[1:]
            etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
            match = re.fullmatch(r"bytes=(\d+)-", asked.range) if faults.has_ranges else None
            if_range = self.headers.get("if-range", etag)
            start = int(match[1]) if match and if_range == etag else 0
            if start >= len(content):
                self._answer(416, b"", {"content-range": f"bytes */{len(content)}"})
                return
            headers = {"etag": etag} if faults.has_etag else {}
            if start:
                headers["content-range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self._head(206 if start else 200, len(content) - start, headers)
            self._send(asked, content[start:])

        def _send(self, asked: Asked, content: bytes) -> None:
            faults = site.faults
            with site.lock:
                is_cut = bool(faults.cut_after) and faults.cuts > 0
                faults.cuts -= is_cut
            if is_cut:
                content = content[: faults.cut_after]
            for at in range(0, len(content), PIECE_BYTES):
                if site.is_ending.is_set():
                    break
                try:
                    self.wfile.write(content[at : at + PIECE_BYTES])
                except OSError:
                    break
                asked.sent += len(content[at : at + PIECE_BYTES])
                time.sleep(faults.pause_s)
            if is_cut:
                self.close_connection = True
                site.is_ending.wait(SILENT_S if faults.silent else 0)

        def _json(self, body: object) -> None:
            self._answer(200, json.dumps(body).encode(), {"content-type": "application/json"})

        def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self._head(status, len(body), headers or {})
            self.wfile.write(body)

        def _head(self, status: int, length: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "content-length": str(length)}.items():
                self.send_header(name, value)
            self.end_headers()

    return Handler


# -- archives --------------------------------------------------------------------------------


def engine_archive(engine: EngineFacts, build: str, folder: Path, *leave_out: str) -> bytes:
    """The programs of the engine that the tests run, as a release has them, without some."""
    top = f"llama-{build}"
    members = [
        Packed(f"{top}/{m.name}", m.source, m.content, m.link, m.is_program)
        for m in files_of(engine).members()
        if not any(word in m.name for word in leave_out)
    ]
    target = folder / f"{build}.tar.gz"
    pack(members, target)
    return target.read_bytes()


def made_archive(build: str, variant: str, *, rpc: bool = True, programs: str = "") -> bytes:
    """Programs that are a header alone.

    Args:
        build: Its folder is named so.
        variant: Decides machine and loader.
        rpc: Whether the RPC server and its backend are there.
        programs: Another variant than the programs are for.
    """
    program = made_program(programs or variant)
    names = ["llama-server", "libllama.so"] + (["ggml-rpc-server", "libggml-rpc.so"] * rpc)
    return tar_of((f"llama-{build}/{name}", program) for name in names)


def made_program(variant: str) -> bytes:
    """An ELF file with the machine and the loader of that variant."""
    words = variant.split("-")
    system, machine = words[0], words[-1]
    loader = _LOADERS[system].encode() + b"\0"
    order, which = (">", 2) if machine == "s390x" else ("<", 1)
    ident = b"\x7fELF" + bytes([2, which, 1]) + bytes(9)
    head = struct.pack(
        f"{order}HHIQQQIHHHHHH", 2, _MACHINES[machine], 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    interpreter = struct.pack(f"{order}IIQQQQQQ", 3, 4, 120, 120, 120, len(loader), len(loader), 1)
    return ident + head + interpreter + loader


def mach_o(cpu: int, *commands: bytes) -> bytes:
    """A program for macOS: its header and load commands."""
    head = (0xFEEDFACF, cpu, 0, 2, len(commands), sum(map(len, commands)), 0, 0)
    return b"".join(number.to_bytes(4, "little") for number in head) + b"".join(commands)


def load_command(kind: int, text: str, offset: int) -> bytes:
    """One of them, with its text at ``offset``."""
    raw = text.encode() + b"\0"
    size = offset + len(raw) + -(offset + len(raw)) % 8
    head = b"".join(number.to_bytes(4, "little") for number in (kind, size, offset))
    return (head.ljust(offset, b"\0") + raw).ljust(size, b"\0")


def tar_of(files: Iterable[tuple[str, bytes]], links: Iterable[tuple[str, str]] = ()) -> bytes:
    """An archive of files, all programs, and of symbolic links, whatever their names."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as tar:
        for name, target in links:
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            tar.addfile(link)
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o755
            tar.addfile(info, io.BytesIO(content))
    return made.getvalue()
