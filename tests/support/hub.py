"""A stand-in of the Hugging Face Hub's HTTP interface, on loopback: what huggingface_hub asks of it here."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]


@dataclass
class Repository:
    private: bool
    commits: list[tuple[str, Files]] = field(default_factory=list)  # the last one is main

    def commit(self, files: Files) -> str:
        """What main holds from now on."""
        digest = hashlib.sha1(str(len(self.commits)).encode())
        for name, content in sorted(files.items()):
            digest.update(name.encode() + content)
        self.commits.append((digest.hexdigest(), dict(files)))
        return digest.hexdigest()

    def at(self, revision: str) -> tuple[str, Files] | None:
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit[0] == revision), None)


@dataclass
class Hub:
    """Its repositories by name, and what was asked for."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    large: Files = field(default_factory=dict)  # by SHA-256
    asked: list[str] = field(default_factory=list)

    def __getitem__(self, name: str) -> Repository:
        return self.repositories[name]

    def change(self, name: str, **changes: bytes | None) -> str:
        """Commit other content of some files; None removes one."""
        files = {**self[name].commits[-1][1], **changes}
        return self[name].commit({key: data for key, data in files.items() if data is not None})


@contextmanager
def stand_in() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def _answer(self, status: int, body: Any = b"", headers: dict[str, str] | None = None) -> None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def _missing(self, code: str) -> None:
            self._answer(404, {"error": code}, {"X-Error-Code": code, "X-Error-Message": code})

        def _body(self) -> bytes:
            if "chunked" in self.headers.get("Transfer-Encoding", ""):
                data = b""
                while size := int(self.rfile.readline(), 16):
                    data += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return data
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def _route(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append(f"{self.command} {path}")
            body = self._body()
            for pattern, answer in _ROUTES.items():
                if match := re.fullmatch(pattern, f"{self.command} {path}"):
                    answer(self, body, *match.groups())
                    return
            self._answer(501, {"error": f"the stand-in knows no {self.command} {path}"})

        def _oid(self, content: bytes | None, path: str) -> str | None:
            if content is None or not path.endswith(".safetensors"):
                return content and _entry(content)["oid"]
            return hashlib.sha256(content).hexdigest()

        do_GET = do_HEAD = do_POST = do_PUT = _route

        def _commit(self, name: str, revision: str) -> tuple[str, Files] | None:
            if name not in hub.repositories:
                self._missing("RepoNotFound")
                return None
            found = hub[name].at(revision)
            if found is None:
                self._missing("RevisionNotFound")
            return found

        def create(self, body: bytes) -> None:
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if name in hub.repositories:
                self._answer(409, {"error": "exists", "url": f"{hub.url}/{name}"})
                return
            hub.repositories[name] = Repository(asked["visibility"] == "private")
            hub[name].commit({".gitattributes": b"*.safetensors filter=lfs\n"})
            self._answer(200, {"url": f"{hub.url}/{name}"})

        def validate(self, body: bytes) -> None:
            self._answer(200, {"errors": [], "warnings": []})

        def info(self, body: bytes, name: str, revision: str | None = None) -> None:
            if found := self._commit(name, revision or "main"):
                commit, files = found
                siblings = [{"rfilename": path} for path in files]
                self._answer(
                    200, {"id": name, "sha": commit, "private": hub[name].private, "siblings": siblings}
                )

        def tree(self, body: bytes, name: str, revision: str) -> None:
            if found := self._commit(name, revision):
                self._answer(
                    200, [{"type": "file", "path": path, **_entry(d)} for path, d in found[1].items()]
                )

        def resolve(self, body: bytes, name: str, revision: str, path: str) -> None:
            if found := self._commit(name, revision):
                commit, files = found
                if path not in files:
                    self._missing("EntryNotFound")
                    return
                etag = f'"{_entry(files[path])["oid"]}"'
                self._answer(200, files[path], {"X-Repo-Commit": commit, "ETag": etag})

        def preupload(self, body: bytes, name: str, revision: str) -> None:
            held = (hub[name].at(revision) or ("", {}))[1]
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                    "oid": self._oid(held.get(file["path"]), file["path"]),
                }
                for file in json.loads(body)["files"]
            ]
            self._answer(200, {"files": files})

        def batch(self, body: bytes, name: str) -> None:
            objects = [
                {**one, "actions": {"upload": {"href": f"{hub.url}/upload/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            self._answer(200, {"transfer": "basic", "objects": objects})

        def upload(self, body: bytes, oid: str) -> None:
            assert hashlib.sha256(body).hexdigest() == oid
            hub.large[oid] = body
            self._answer(200)

        def commit(self, body: bytes, name: str, revision: str) -> None:
            commit, files = hub[name].at(revision) or ("", {})
            files = dict(files)
            for line in body.splitlines():
                one = json.loads(line)
                key, value = one["key"], one["value"]
                if key == "header":
                    assert value.get("parentCommit", commit) == commit
                elif key == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif key == "lfsFile":
                    files[value["path"]] = hub.large[value["oid"]]
                else:
                    assert key == "deletedFile"
                    del files[value["path"]]
            oid = hub[name].commit(files)
            self._answer(200, {"commitOid": oid, "commitUrl": f"{hub.url}/{name}/commit/{oid}"})

    name, api = r"([\w.-]+/[\w.-]+)", "/api/(?:models|datasets)"
    of_either = rf"(?:/datasets)?/{name}"
    _ROUTES = {
        "POST /api/repos/create": Handler.create,
        "POST /api/validate-yaml": Handler.validate,
        f"GET {api}/{name}": Handler.info,
        f"GET {api}/{name}/revision/(.+)": Handler.info,
        f"GET {api}/{name}/tree/([^/]+)/?": Handler.tree,
        f"(?:GET|HEAD) {of_either}/resolve/([^/]+)/(.+)": Handler.resolve,
        f"POST {api}/{name}/preupload/(.+)": Handler.preupload,
        rf"POST {of_either}\.git/info/lfs/objects/batch": Handler.batch,
        "PUT /upload/(.+)": Handler.upload,
        f"POST {api}/{name}/commit/(.+)": Handler.commit,
    }
    return Handler


def _entry(content: bytes) -> dict[str, Any]:
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return {"size": len(content), "oid": blob}
