"""A stand-in for the model hub, with the faults that the real one shows now and then.

It serves the files below ``FOLDER/OWNER/REPO`` as huggingface_hub asks for them: searches at
``/api/models``, the listing at ``/api/models/OWNER/REPO``, files at
``/OWNER/REPO/resolve/REVISION/PATH``, which redirects to a second port as the real hub does to its
store. ``FOLDER/OWNER/REPO.revision`` is the only revision of a repository that has no past. It
prints the hub's address, then a line of JSON for every request, and ends with its
standard input. Faults strike the first ``--times`` requests that can have them.
"""

import argparse
import hashlib
import json
import re
import sys
import threading
import time
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

PIECE_BYTES = 1 << 16
HASHED_BYTES = 1 << 30
ENDS_WITHIN_S = 5.0
REVISION = "0123456789abcdef0123456789abcdef01234567"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--token", default="", help="files need this one: the model is gated")
    parser.add_argument("--times", type=int, default=1_000_000, help="how often faults strike")
    parser.add_argument("--status", type=int, default=0, help="of the listing")
    parser.add_argument("--store-status", type=int, default=0, help="of the store")
    parser.add_argument("--header", action="append", default=[], help="NAME=VALUE beside --status")
    parser.add_argument("--sign-in-page", action="store_true", help="HTML in place of the listing")
    parser.add_argument("--cut-after", type=int, default=0, help="bytes, then the store hangs up")
    parser.add_argument("--short-by", type=int, default=0, help="bytes missing in a store's answer")
    parser.add_argument("--wrong-size", type=int, default=0, help="bytes more in the listing")
    parser.add_argument("--no-ranges", action="store_true", help="the store sends whole files")
    parser.add_argument("--drip-s", type=float, default=0, help="between pieces of the store")
    parser.add_argument("--wrong-bytes", action="store_true", help="the store sends others")
    parser.add_argument("--silent-after", type=int, default=0, help="bytes, then nothing comes")
    parser.add_argument("--silent", action="store_true", help="the listing is never answered")
    parser.add_argument("--renamed", default="", help="OLD=NEW repository: redirects")
    parser.add_argument("--known", action="append", default=[], help="OWNER/REPO=JSON, its facts")
    parser.add_argument("--listed", action="append", default=[], help="a name of no file")
    parser.add_argument("--padding", type=int, default=0, help="bytes more in what a search finds")
    return parser.parse_args()


class State:
    """What both servers share."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.lock = threading.Condition()
        self.end = threading.Event()
        self.busy = 0
        self.struck = 0
        self.store = ""

    def strikes(self, is_wanted: bool) -> bool:
        """Whether a fault happens now."""
        with self.lock:
            self.struck += is_wanted
            return is_wanted and self.struck <= self.options.times

    def begin(self) -> None:
        with self.lock:
            self.busy += 1

    def log(self, **record: object) -> None:
        """Log the end of a request."""
        with self.lock:
            print(json.dumps(record), flush=True)
            self.busy -= 1
            self.lock.notify_all()

    def wait(self) -> None:
        """Until our input ends and all requests are logged."""
        sys.stdin.read()
        self.end.set()
        with self.lock:
            self.lock.wait_for(lambda: self.busy == 0, ENDS_WITHIN_S)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: State
    server_name = ""
    sent = 0

    def log_message(self, format: str, *args: object) -> None:
        """Our own log is on stdout."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.sent = 0
        self.state.begin()
        path = unquote(urlsplit(self.path).path)
        try:
            self.sent = self.answer(path)
        except ConnectionError:
            self.close_connection = True
        finally:
            self.state.log(
                server=self.server_name,
                method=self.command,
                path=path,
                query=urlsplit(self.path).query,
                range=self.headers.get("Range", ""),
                authorization=self.headers.get("Authorization", ""),
                sent=self.sent,
            )

    def answer(self, path: str) -> int:
        raise NotImplementedError

    def reply(self, status: int, body: bytes = b"", **headers: str) -> int:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return 0
        self.wfile.write(body)
        return len(body)

    def fault(self, status: int) -> int:
        headers = dict(pair.split("=", 1) for pair in self.state.options.header)
        return self.reply(status, b'{"error":"as told"}', **headers)


class Hub(Handler):
    server_name = "hub"

    def answer(self, path: str) -> int:
        options = self.state.options
        if self.state.strikes(options.silent):
            self.state.end.wait(60)
        if self.state.strikes(options.sign_in_page):
            return self.reply(
                200, b"<!DOCTYPE html><p>Welcome to our Wi-Fi", Content_Type="text/html"
            )
        if self.state.strikes(bool(options.status)):
            return self.fault(options.status)
        old, _, new = options.renamed.partition("=")
        if old and f"/{old}" in path:
            return self.reply(307, Location=quote(path.replace(f"/{old}", f"/{new}")))
        if path == "/api/models":
            return self.search(parse_qs(urlsplit(self.path).query))
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)", path):
            return self.listing(found[1])
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            only = self.only_revision(found[1])
            if only and found[2] not in ("main", only):
                return self.reply(404, X_Error_Code="RevisionNotFound")
            return self.redirect(found[1], found[3])
        return self.reply(404)

    def search(self, query: dict[str, list[str]]) -> int:
        """As the hub does: with ``expand`` what it names alone, without it no dates and gates."""
        folder = self.state.options.folder
        words = query.get("search", [""])[0].lower()
        repos = (str(path.relative_to(folder)) for path in folder.glob("*/*") if path.is_dir())
        found = [self.facts(repo) for repo in repos if words in repo.lower()]
        if "gguf" in query.get("filter", []):
            found = [facts for facts in found if any((folder / facts["id"]).rglob("*.gguf"))]
        if "sort" in query:
            found.sort(key=lambda facts: facts[query["sort"][0]], reverse=True)
        usual = ["modelId", "likes", "private", "downloads", "tags", "createdAt"]
        shown = {"_id", "id", *query.get("expand", usual)}
        body = [{n: v for n, v in facts.items() if n in shown} for facts in found]
        limit = int(query.get("limit", ["1000"])[0])
        text = json.dumps(body[:limit]) + " " * self.state.options.padding
        return self.reply(200, text.encode(), Content_Type="application/json")

    def facts(self, repo: str) -> dict[str, Any]:
        known = dict(pair.split("=", 1) for pair in self.state.options.known)
        return {
            "_id": hashlib.sha256(repo.encode()).hexdigest()[:24],
            "id": repo,
            "modelId": repo,
            "likes": 0,
            "private": False,
            "downloads": 0,
            "tags": ["gguf", "region:us"],
            "createdAt": "2026-01-02T03:04:05.000Z",
            "lastModified": "2026-02-03T04:05:06.000Z",
            "gated": False,
            **json.loads(known.get(repo, "{}")),
        }

    def listing(self, repo: str) -> int:
        folder = self.state.options.folder / repo
        if not folder.is_dir():
            return self.reply(
                401, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found"
            )
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        siblings = [self.sibling(path, str(path.relative_to(folder))) for path in files]
        listed = self.state.options.listed
        siblings += [{"rfilename": name, "size": 5, "blobId": "0" * 40} for name in listed]
        sha = self.only_revision(repo) or REVISION
        body = {"_id": "1", "id": repo, "sha": sha, "gated": False, "siblings": siblings}
        return self.reply(200, json.dumps(body).encode(), Content_Type="application/json")

    def only_revision(self, repo: str) -> str:
        noted = self.state.options.folder / f"{repo}.revision"
        return noted.read_text() if noted.exists() else ""

    def sibling(self, path: Path, name: str) -> dict[str, object]:
        stat = path.stat()
        size = stat.st_size + self.state.options.wrong_size
        digest = digest_of(path, stat.st_size, stat.st_mtime_ns)
        if path.suffix != ".gguf":
            return {"rfilename": name, "size": size, "blobId": digest[:40]}
        lfs = {"sha256": digest, "size": size, "pointerSize": 134}
        return {"rfilename": name, "size": size, "blobId": digest[:40], "lfs": lfs}

    def redirect(self, repo: str, name: str) -> int:
        token, given = self.state.options.token, self.headers.get("Authorization", "")
        if token and given != f"Bearer {token}":
            return self.reply(
                403 if given else 401,
                X_Error_Code="GatedRepo",
                X_Error_Message=f"Access to model {repo} is restricted.",
            )
        if not (self.state.options.folder / repo / name).is_file():
            return self.reply(404, X_Error_Code="EntryNotFound", X_Error_Message="Entry not found")
        file = self.state.options.folder / repo / name
        facts = self.sibling(file, name)
        lfs = facts.get("lfs")
        return self.reply(
            302,
            Location=f"{self.state.store}/{quote(f'{repo}/{name}')}?signed=1",
            X_Repo_Commit=self.only_revision(repo) or REVISION,
            X_Linked_Etag=f'"{lfs["sha256"] if isinstance(lfs, dict) else facts["blobId"]}"',
            X_Linked_Size=str(facts["size"]),
        )


@cache
def digest_of(path: Path, size: int, changed_ns: int) -> str:
    """SHA-256 as the hub has it; of huge made-up files a figure that looks alike, to save time."""
    if size > HASHED_BYTES:
        return hashlib.sha256(f"{path.name} {size} {changed_ns}".encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Store(Handler):
    server_name = "store"

    def answer(self, path: str) -> int:
        options = self.state.options
        if self.state.strikes(bool(options.store_status)):
            return self.fault(options.store_status)
        file = options.folder / path.lstrip("/")
        size = file.stat().st_size
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        start, end = (int(asked[1]), min(int(asked[2]) + 1, size)) if asked else (0, size)
        if options.no_ranges:
            start, end = 0, size
        if start >= size:
            return self.reply(416, Content_Range=f"bytes */{size}")
        self.send_response(200 if options.no_ranges else 206)
        if not options.no_ranges:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        end -= options.short_by
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        self.send_file(file, start, end)
        return self.sent

    def send_file(self, path: Path, start: int, end: int) -> None:
        options = self.state.options
        cut = self.state.strikes(bool(options.cut_after))
        falls_silent = self.state.strikes(bool(options.silent_after))
        wrong = self.state.strikes(options.wrong_bytes)
        with path.open("rb") as file:
            file.seek(start)
            while start + self.sent < end:
                if cut and self.sent >= options.cut_after:
                    self.close_connection = True
                    return
                if falls_silent and self.sent >= options.silent_after:
                    self.state.end.wait(60)
                piece = file.read(min(PIECE_BYTES, end - start - self.sent))
                if wrong:
                    piece, wrong = bytes(len(piece) * [0x55]), False
                self.wfile.write(piece)
                self.sent += len(piece)
                time.sleep(options.drip_s)


def main() -> None:
    state = State(arguments())
    Handler.state = state
    hub, store = (ThreadingHTTPServer(("127.0.0.1", 0), kind) for kind in (Hub, Store))
    state.store = f"http://127.0.0.1:{store.server_port}"
    for server in (hub, store):
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{hub.server_port}", flush=True)
    state.wait()


if __name__ == "__main__":
    main()
