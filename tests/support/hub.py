"""A small Hugging Face Hub on 127.0.0.1, for tests of what reads from the real one.

The real clients (`datasets`, `huggingface_hub`, `transformers`) work against it with `HF_ENDPOINT`. They read that
variable when they are imported, so tests start them in another process: `Hub.run`, or any process with
`Hub.environment`. Statuses, headers and messages are those of the real Hub for a user who is not logged in, except that
files are sent at once, without a redirect to where they are stored. Who sends its `token` may create repositories of datasets
and upload to them, file by file, by the protocol of Git LFS.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from random import Random
from urllib.parse import parse_qs, unquote, urlsplit

from tests.support.warm import BUILDING, server

#: Has a fork of a process that knows the Hub's clients import them anew, with its own environment.
ANEW = """
import sys
for name in [*sys.modules]:
    if name.partition(".")[0] in ("datasets", "huggingface_hub", "transformers"):
        del sys.modules[name]
"""
_DATE = "2024-01-01T00:00:00.000Z"
_CHUNK = 1 << 16  # bytes counted as sent, then sent; so a count is at most this much ahead of a reader that went away


@dataclass
class Request:
    """One request that the hub received.

    Attributes:
        method: The HTTP method.
        path: The path as sent, with its query; a full URL if it was meant for another host than the hub.
        repo: `datasets/owner/name` or `models/owner/name`; empty if the path names none.
        file: Path in the repository of the file whose content or metadata was asked for; else empty.
        range: The `Range` header, or None.
        status: The HTTP status of the answer.
        sent: Bytes of the file's content in the answer.
        time: When it came, in seconds.
    """

    method: str
    path: str
    repo: str = ""
    file: str = ""
    range: str | None = None
    status: int = 0
    sent: int = 0
    time: float = field(default_factory=time.monotonic)


@dataclass
class Faults:
    """What goes wrong: each request draws its lot from the seed and its number, so that a second try may fail again.

    Attributes:
        errors: Share of requests that are answered 500 or 503.
        limited: Share of requests that are answered 429.
        limited_at: The number, from 1, of the request for one of the files that is answered 429; None for none.
        retry_after: The `Retry-After` header of a 429.
        cut: Share of files' contents of which half is sent before the connection ends.
        stalls: Share of requests that are never answered, on connections that stay open.
        down_after: Request after which connections are refused for `down_seconds`; None for never.
        files: Glob of the files that the shares are of; `*` for all requests.
        kinds: How often each has happened.
        asked: The numbers of the next requests for one of the files.
    """

    errors: float = 0.0
    limited: float = 0.0
    limited_at: int | None = None
    retry_after: str = "0"
    cut: float = 0.0
    stalls: float = 0.0
    down_after: int | None = None
    down_seconds: float = 0.5
    files: str = "*"
    seed: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    asked: Iterator[int] = field(default_factory=lambda: count(1))

    def draw(self, number: int, file: str) -> str:
        """Which fault a request has; empty for none."""
        if not fnmatch(file, self.files):
            return ""
        if next(self.asked) == self.limited_at:
            return "limited"
        lot = Random(f"{self.seed}/{number}").random()
        for kind in ("errors", "limited", "cut", "stalls"):
            if (lot := lot - getattr(self, kind)) < 0:
                return kind
        return ""


class Hub:
    """Serves the repositories under a folder: `folder/datasets/owner/name/...` and `folder/models/owner/name/...`.

    A repository has one revision, "main", whose sha is made from the paths and contents of its files.

    Attributes:
        folder: Where the repositories are. Read on each request: files may be added while the hub runs.
        endpoint: The hub's URL, without a slash at the end.
        gated: Names ("owner/name") of repositories whose files nobody may read; as on the real Hub, all may list them.
        lacks: Actions that it does not know, such as "auth-check", as mirrors of the Hub do not.
        page_size: Entries per page of a tree listing.
        requests: What was asked for so far; `requests.clear()` starts over.
        faults: What goes wrong.
        token: The token of its one user; without it nobody can write.
        private: Names of repositories that only its user can see.
    """

    def __init__(self, folder: Path) -> None:
        """Binds a free port. The hub answers once entered as a context."""
        self.folder = folder
        self.gated: set[str] = set()
        self.lacks: set[str] = set()
        self.token = ""
        self.private: set[str] = set()
        self.page_size = 1000
        self.requests: list[Request] = []
        self.faults = Faults()
        self.left = threading.Event()
        self._old: dict[tuple[str, str], Path] = {}
        self._again: threading.Timer | None = None
        self._bind(0)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Hub:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.left.set()
        if self._again is not None:
            self._again.join()
        self._close()

    def refuse(self, seconds: float) -> None:
        """Refuses new connections for a while."""
        self._close()
        self._again = threading.Timer(seconds, self._reopen)
        self._again.start()

    def _reopen(self) -> None:
        self._bind(self._server.server_port)
        self._thread.start()

    def _bind(self, port: int) -> None:
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.hub = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def _close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def keep(self, repo: str) -> str:
        """Keeps the commit that "main" of a repository is now, before its files change. Gives its sha."""
        sha = self.sha(repo)
        self._old[repo, sha] = self.folder / ".old" / sha
        shutil.copytree(self.folder / repo, self._old[repo, sha])
        return sha

    def revisions(self, repo: str) -> set[str]:
        """What a revision of a repository may be called."""
        return {"", "main", self.sha(repo)} | {sha for name, sha in self._old if name == repo}

    def entries(self, repo: str, revision: str = "") -> dict[str, Path]:
        """The files and folders of a repository (named as in `Request.repo`): path in it -> path on this disk."""
        root = self._old.get((repo, revision), self.folder / repo)
        return {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*"))}

    def sha(self, repo: str) -> str:
        """The commit that "main" of a repository (named as in `Request.repo`) is now: 40 hexadecimal digits."""
        listing = [f"{path} {_digest(place)}" for path, place in self.entries(repo).items() if place.is_file()]
        return hashlib.sha1("\n".join([repo, *listing]).encode()).hexdigest()

    def bytes_served(self, file_glob: str = "*") -> int:
        """Bytes of content sent of the files whose path in their repository matches."""
        return sum(request.sent for request in self.requests if fnmatch(request.file, file_glob))

    def opened(self) -> set[str]:
        """Paths, in their repositories, of the files of which content was sent."""
        return {request.file for request in self.requests if request.sent}

    def environment(self, home: Path) -> dict[str, str]:
        """The environment for a process whose Hub this is, and that reaches no other host over HTTP.

        Args:
            home: Folder for its caches, `HF_HOME`. A new folder is a user who has nothing cached and never logged in.
        """
        private = re.compile(r"(HF|HUGGING\w*|TRANSFORMERS|DATASETS)_|\w+_PROXY$", re.IGNORECASE)
        return {name: value for name, value in os.environ.items() if not private.match(name)} | {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_DISABLE_XET": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # else `datasets` asks s3.amazonaws.com
            "TOKENIZERS_PARALLELISM": "false",
            # `datasets` asks datasets-server.127.0.0.1 for exports: that, and all else, ends here, in a recorded 404
            "HTTP_PROXY": self.endpoint,
            "HTTPS_PROXY": self.endpoint,
            "NO_PROXY": "127.0.0.1,localhost",
        }

    def run(self, script: str, home: Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Runs Python source in a new process with `environment(home)`, in the folder `home`, and captures its output.

        Raises:
            subprocess.TimeoutExpired: It took longer than `timeout` seconds.
        """
        home.mkdir(parents=True, exist_ok=True)
        return server(BUILDING).run(script, folder=home, environment=self.environment(home), timeout=timeout)


def _digest(file: Path) -> str:
    return _sha256(file, file.stat().st_size, file.stat().st_mtime_ns)


@lru_cache(maxsize=4096)
def _sha256(file: Path, size: int, modified: int) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


class _Server(ThreadingHTTPServer):
    hub: Hub
    daemon_threads = True
    request_queue_size = 64  # `datasets` and `huggingface_hub` ask with up to 16 threads

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a reader may go away in the middle of a file
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _HubError(Exception):
    def __init__(self, status: int, message: str, code: str = "", **headers: str) -> None:
        self.status, self.message = status, message
        named = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.headers = named | {name.replace("_", "-"): value for name, value in headers.items()}


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else a small answer may wait 40 ms for an acknowledgement

    # /api/datasets/owner/name[/action[/revision[/path]]], /datasets/owner/name/resolve/..., /owner/name/resolve/...
    route = re.compile(r"/(api/)?(?:(datasets|models)/)?([^/]+/[^/]+)(?:/([a-z-]+)(?:/([^/]+)(?:/(.+))?)?)?")

    def log_message(self, *args: object) -> None:
        """Prints nothing."""

    def answer(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        is_form = self.headers.get("Content-Type", "").startswith("application/x-www-form-urlencoded")
        self.form = parse_qs(self.body.decode()) if is_form else {}
        self.record = Request(self.command, self.path, range=self.headers.get("Range"))
        hub = self.server.hub
        hub.requests.append(self.record)
        number, faults = len(hub.requests), hub.faults
        file = self.path.partition("/resolve/")[2].partition("/")[2]
        fault = faults.draw(number, file)
        if faults.down_after is not None and number > faults.down_after:
            faults.down_after, fault = None, "down"
            hub.refuse(faults.down_seconds)
        if fault == "cut" and not file:
            fault = ""
        faults.kinds[fault] += 1
        self.half = fault == "cut"
        try:
            if fault == "errors":
                raise _HubError(Random(number).choice([500, 503]), "Something went wrong on our side")
            if fault == "limited":
                raise _HubError(429, "We had to rate limit you", Retry_After=faults.retry_after)
            if fault in ("stalls", "down"):
                self.close_connection = True
                if fault == "stalls":
                    hub.left.wait()
                return
            if not self.send_upload(urlsplit(self.path).path):
                self.send_answer()
        except _HubError as error:
            self.send_json({"error": error.message}, error.headers, error.status)

    do_GET = do_HEAD = do_POST = do_PUT = do_CONNECT = answer  # noqa: N815

    def send_answer(self) -> None:
        hub, url = self.server.hub, urlsplit(self.path)
        match = self.route.fullmatch(url.path)
        if url.netloc or not match:  # netloc: the client takes us for the proxy to another host
            raise _HubError(404, "Not found")
        api, kind, name, action, revision, path = (unquote(part or "") for part in match.groups())
        repo = self.record.repo = f"{kind or 'models'}/{name}"
        if not (hub.folder / repo).is_dir() or (name in hub.private and not self.is_user()):
            raise _HubError(401, "Invalid username or password.", "RepoNotFound")
        if name in hub.gated and action in ("resolve", "auth-check"):
            message = f"Access to {kind[:-1] or 'model'} {name} is restricted. You must have access to it and be"
            raise _HubError(401, f"{message} authenticated to access it. Please log in.", "GatedRepo")
        if action in hub.lacks:
            raise _HubError(404, "Not found")
        sha, entries = hub.sha(repo), hub.entries(repo, revision)
        if revision in hub.revisions(repo) - {"", "main"}:
            sha = revision
        elif revision not in ("", "main"):
            raise _HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        if action == "resolve" and not api:
            self.send_file(path, entries.get(path), sha)
        elif action == "tree":
            self.send_tree(path, entries, parse_qs(url.query))
        elif action == "paths-info":
            self.send_json([_describe(path, entries[path]) for path in self.form.get("paths", []) if path in entries])
        elif action == "commits":
            self.send_json([{"id": sha, "title": "", "message": "", "date": _DATE, "authors": [{"user": "nobody"}]}])
        elif action in ("", "revision", "auth-check"):
            files = [{"rfilename": path} for path, place in entries.items() if place.is_file()]
            info = {
                "id": name,
                "sha": sha,
                "private": name in hub.private,
                "disabled": False,
                "siblings": files,
                "tags": [],
            }
            self.send_json(info | {"gated": "auto" if name in hub.gated else False, "lastModified": _DATE})
        else:
            raise _HubError(404, "Not found")

    # /api/repos/create, /api/validate-yaml, /api/datasets/owner/name/commit/main, /datasets/owner/name.git/info/lfs/...
    uploads = re.compile(
        r"/api/(?P<new>repos/create)|/api/(?P<yaml>validate-yaml)|/api/datasets/(?P<repo>[^/]+/[^/]+)/(?P<what>preupload|commit)/main|"
        r"/datasets/(?P<lfs>[^/]+/[^/]+)[.]git/info/lfs/objects/batch|/lfs/(?P<oid>[0-9a-f]{64})"
    )

    def is_user(self) -> bool:
        token = self.server.hub.token
        return token != "" and self.headers.get("Authorization") == f"Bearer {token}"

    def send_upload(self, path: str) -> bool:
        """Answers a request of an upload; gives whether it is one."""
        hub, match = self.server.hub, self.uploads.fullmatch(path)
        if match is None or self.command not in ("POST", "PUT"):
            return False
        # Where an object goes is a signed URL.
        if match["what"] in hub.lacks:
            raise _HubError(500, "Something went wrong on our side")
        if match["oid"] is None and not self.is_user():
            raise _HubError(401, "Invalid username or password.")
        objects = hub.folder / ".lfs"
        objects.mkdir(exist_ok=True)
        self.record.repo = f"datasets/{match['repo'] or match['lfs'] or ''}"
        if match["oid"]:
            self.record.file = match["oid"]
            assert hashlib.sha256(self.body).hexdigest() == match["oid"]
            (objects / match["oid"]).write_bytes(self.body)
            self.send_json({})
        elif match["yaml"]:
            self.send_json({"errors": [], "warnings": []})
        elif match["new"]:
            asked = json.loads(self.body)
            name = f"{asked['organization'] or 'me'}/{asked['name']}"
            folder = hub.folder / f"{asked['type']}s" / name
            url = {"url": f"{hub.endpoint}/datasets/{name}"}
            if folder.exists():
                self.send_json(url, status=409)
                return True
            folder.mkdir(parents=True)
            (folder / ".gitattributes").write_text("*.lance filter=lfs diff=lfs merge=lfs -text\n")
            if asked.get("private") or asked.get("visibility") == "private":
                hub.private.add(name)
            self.send_json(url)
        elif match["lfs"]:
            found = []
            for one in json.loads(self.body)["objects"]:
                there = (objects / one["oid"]).exists()
                found.append(
                    one if there else one | {"actions": {"upload": {"href": f"{hub.endpoint}/lfs/{one['oid']}"}}}
                )
            self.send_json({"transfer": "basic", "objects": found})
        else:
            self.send_written(match["repo"], match["what"], objects)
        return True

    def send_written(self, name: str, what: str, objects: Path) -> None:
        """Answers how files are to be sent, or makes a commit of them."""
        hub, folder = self.server.hub, self.server.hub.folder / "datasets" / name
        if not folder.is_dir():
            raise _HubError(401, "Invalid username or password.", "RepoNotFound")
        if what == "preupload":
            ignored = (folder / ".gitignore").read_text().split() if (folder / ".gitignore").exists() else []
            files = []
            for file in json.loads(self.body)["files"]:
                binary = b"\0" in base64.b64decode(file["sample"]) or file["path"].endswith(".lance")
                ignore = any(fnmatch(file["path"], pattern) for pattern in ignored)
                files.append(
                    {"path": file["path"], "uploadMode": "lfs" if binary else "regular", "shouldIgnore": ignore}
                )
            self.send_json({"files": files})
            return
        lines = [json.loads(line) for line in self.body.splitlines()]
        if lines[0]["value"].get("parentCommit", hub.sha(f"datasets/{name}")) != hub.sha(f"datasets/{name}"):
            raise _HubError(412, "A commit has happened since. Please refresh and try again.")
        hub.keep(f"datasets/{name}")
        for line in lines[1:]:
            file = folder / line["value"]["path"]
            file.parent.mkdir(parents=True, exist_ok=True)
            if line["key"] == "file":
                file.write_bytes(base64.b64decode(line["value"]["content"]))
            elif line["key"] == "lfsFile":
                file.write_bytes((objects / line["value"]["oid"]).read_bytes())
            else:
                file.unlink()
        sha = hub.sha(f"datasets/{name}")
        self.send_json({"commitUrl": f"{hub.endpoint}/datasets/{name}/commit/{sha}", "commitOid": sha})

    def send_tree(self, path: str, entries: dict[str, Path], query: dict[str, list[str]]) -> None:
        prefix = f"{path}/" if path else ""
        deep = query.get("recursive") == ["true"]
        below = [entry for entry in entries if entry.startswith(prefix) and (deep or "/" not in entry[len(prefix) :])]
        if path and not below:
            raise _HubError(404, f"{path} does not exist", "EntryNotFound")
        start = int(query.get("cursor", ["0"])[0])
        stop = start + self.server.hub.page_size
        following = f"{self.server.hub.endpoint}{self.path.partition('&cursor=')[0]}&cursor={stop}"
        page = [_describe(entry, entries[entry]) for entry in below[start:stop]]
        self.send_json(page, {"Link": f'<{following}>; rel="next"'} if stop < len(below) else {})

    def send_file(self, path: str, file: Path | None, sha: str) -> None:
        self.record.file = path
        if file is None or not file.is_file():
            raise _HubError(404, "Entry not found", "EntryNotFound", X_Repo_Commit=sha)
        start, stop, size, status = 0, file.stat().st_size, file.stat().st_size, 200
        headers = {"X-Repo-Commit": sha, "X-Linked-Size": str(size), "ETag": f'"{_digest(file)}"'}
        headers |= {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)|bytes=-(\d+)", self.record.range or ""):
            first, last, tail = match.groups()
            start = int(first) if first else max(0, size - int(tail))
            stop = min(size, int(last) + 1) if last else size
            if start >= stop:
                raise _HubError(416, "Range Not Satisfiable", Content_Range=f"bytes */{size}")
            status, headers["Content-Range"] = 206, f"bytes {start}-{stop - 1}/{size}"
        self.send_head(status, stop - start, headers)
        with file.open("rb") as content:
            content.seek(start)
            if self.half:
                stop, self.close_connection = (start + stop) // 2, True
            while self.command == "GET" and (chunk := content.read(min(_CHUNK, stop - content.tell()))):
                self.record.sent += len(chunk)
                self.wfile.write(chunk)

    def send_head(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.record.status = status
        self.send_response(status)
        for name, value in {"Content-Length": str(length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def send_json(self, value: object, headers: dict[str, str] | None = None, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_head(status, len(body), {"Content-Type": "application/json"} | (headers or {}))
        if self.command != "HEAD":
            self.wfile.write(body)


def _describe(path: str, place: Path) -> dict[str, object]:
    """An entry of a tree listing."""
    commit = {"id": "0" * 40, "title": "", "date": _DATE}  # the real Hub sends it only if asked to `expand`
    if place.is_dir():
        return {"type": "directory", "oid": "0" * 40, "size": 0, "path": path, "lastCommit": commit}
    oid, size = _digest(place)[:40], place.stat().st_size
    return {"type": "file", "oid": oid, "size": size, "path": path, "lastCommit": commit}
