"""A hub of models in this process: the requests that huggingface_hub sends, answered from memory.

Speaks what HfApi.create_repo, create_branch and create_commit and snapshot_download ask for: repositories of
one line of commits per branch, files in the commit or by git-lfs's "basic" transfer.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_right"


@dataclass
class Hub:
    """What the stand-in holds and has seen.

    Attributes:
        repos: name -> branch -> file -> content.
        private: names that only the token's owner sees.
        requests: "METHOD /path" in the order of arrival.
        agents: the tokens that came with them.
        refuse: path pattern -> status to answer instead.
    """

    repos: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    requests: list[str] = field(default_factory=list)
    refuse: dict[str, int] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    endpoint: str = ""

    def sha(self, repo: str, branch: str) -> str:
        """A commit's name: of its content."""
        digest = hashlib.sha1(repo.encode())
        for name, content in sorted(self.repos[repo][branch].items()):
            digest.update(name.encode() + b"\0" + content)
        return digest.hexdigest()

    def at(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """(commit, files) of a branch or commit."""
        for branch in self.repos.get(repo, {}):
            if revision in (branch, self.sha(repo, branch)):
                return self.sha(repo, branch), self.repos[repo][branch]
        return None


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: object = b"", **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        for pattern, status in self.hub.refuse.items():
            if re.search(pattern, path):
                return self.answer(status, {"error": "the disk of the hub is full"})
        for pattern, method in _ROUTES.items():
            if match := re.fullmatch(pattern, f"{self.command} {path}"):
                return method(self, allowed, body, *match.groups())
        return self.answer(404, {"error": f"no such address {path}"})

    do_GET = do_POST = do_PUT = do_HEAD = do  # noqa: N815

    def create(self, allowed: bool, body: bytes) -> None:
        spec = json.loads(body)
        name = f"{spec['organization']}/{spec['name']}"
        if not allowed:
            return self.answer(401, {"error": "Invalid username or password."})
        if spec["organization"] == "stranger":
            return self.answer(403, {"error": "You don't have the rights"})
        known = name in self.hub.repos
        self.hub.repos.setdefault(name, {"main": {}})
        if not known and (spec.get("private") or spec.get("visibility") == "private"):
            self.hub.private.add(name)
        return self.answer(409 if known else 200, {"url": f"{self.hub.endpoint}/{name}"})

    def branch(self, allowed: bool, body: bytes, repo: str, branch: str) -> None:
        known = branch in self.hub.repos[repo]
        self.hub.repos[repo].setdefault(branch, dict(self.hub.repos[repo]["main"]))
        return self.answer(409 if known else 200, {})

    def preupload(self, allowed: bool, body: bytes, repo: str, revision: str) -> None:
        files = [
            {
                "path": f["path"],
                "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for f in json.loads(body)["files"]
        ]
        return self.answer(200, {"files": files})

    def batch(self, allowed: bool, body: bytes, repo: str) -> None:
        objects = [
            {
                "oid": o["oid"],
                "size": o["size"],
                "actions": {"upload": {"href": f"{self.hub.endpoint}/uploads/{o['oid']}"}},
            }
            for o in json.loads(body)["objects"]
        ]
        return self.answer(200, {"transfer": "basic", "objects": objects})

    def upload(self, allowed: bool, body: bytes, oid: str) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.uploads[oid] = body
        return self.answer(200)

    def commit(self, allowed: bool, body: bytes, repo: str, revision: str) -> None:
        if not allowed:
            return self.answer(401, {"error": "Invalid username or password."})
        files = self.hub.repos[repo][revision]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.hub.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.uploads[value["oid"]]
        sha = self.hub.sha(repo, revision)
        answer = {"commitUrl": f"{self.hub.endpoint}/{repo}/commit/{sha}", "commitOid": sha}
        return self.answer(200, answer)

    def found(self, allowed: bool, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if repo not in self.hub.repos or (repo in self.hub.private and not allowed):
            self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            return None
        if (found := self.hub.at(repo, revision)) is None:
            self.answer(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
        return found

    def info(self, allowed: bool, body: bytes, repo: str, revision: str | None = None) -> None:
        if found := self.found(allowed, repo, revision or "main"):
            files = [{"rfilename": name} for name in found[1]]
            self.answer(200, {"id": repo, "sha": found[0], "siblings": files, "private": False})

    def tree(self, allowed: bool, body: bytes, repo: str, revision: str) -> None:
        if found := self.found(allowed, repo, revision):
            rows = [
                {"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                for n, c in found[1].items()
            ]
            self.answer(200, rows)

    def resolve(self, allowed: bool, body: bytes, repo: str, revision: str, name: str) -> None:
        if found := self.found(allowed, repo, revision):
            content = found[1][name]
            tag = f'"{hashlib.sha1(content).hexdigest()}"'
            self.answer(200, content, ETag=tag, X_Repo_Commit=found[0])

    def yaml(self, allowed: bool, body: bytes) -> None:
        self.answer(200, {"errors": [], "warnings": []})


_NAME = r"([\w.-]+/[\w.-]+)"
_ROUTES = {
    r"POST /api/repos/create": _Handler.create,
    rf"POST /api/models/{_NAME}/branch/(.+)": _Handler.branch,
    rf"POST /api/models/{_NAME}/preupload/(.+)": _Handler.preupload,
    rf"POST /{_NAME}\.git/info/lfs/objects/batch": _Handler.batch,
    r"PUT /uploads/(\w+)": _Handler.upload,
    rf"POST /api/models/{_NAME}/commit/(.+)": _Handler.commit,
    rf"GET /api/models/{_NAME}": _Handler.info,
    rf"GET /api/models/{_NAME}/revision/(.+)": _Handler.info,
    rf"GET /api/models/{_NAME}/tree/([^/]+)": _Handler.tree,
    rf"(?:GET|HEAD) /{_NAME}/resolve/([^/]+)/(.+)": _Handler.resolve,
    r"POST /api/validate-yaml": _Handler.yaml,
}


def start() -> tuple[Hub, ThreadingHTTPServer]:
    """A running hub on a free port of this machine, and the server to shut down."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    return hub, server
