"""A stand-in for the W&B server on 127.0.0.1: what wandb 0.31 asks of one, answered from memory.

It keeps what arrives as it arrived, so that a test can hold it against the run folder. A question it does not know
is refused and kept in `unknown`: a newer wandb asks other ones.
"""

import contextlib
import json
import re
import threading
import time
from base64 import b64decode
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, unquote

KEY = "a" * 40


@dataclass
class Uploaded:
    """A version of an artifact."""

    id: str
    run: "Tracked"
    name: str
    type: str
    digest: str
    version: int
    metadata: str | None
    manifest: bytes = b""
    files: dict[str, bytes] = field(default_factory=dict)
    state: str = "PENDING"


@dataclass
class Tracked:
    """A run as the server has it."""

    entity: str
    project: str
    id: str
    fields: dict = field(default_factory=dict)  # displayName, groupName, jobType, tags, notes, ...
    config: dict = field(default_factory=dict)  # key -> value, `_wandb` among them
    lines: dict[str, list[str]] = field(default_factory=dict)  # of each streamed file
    files: dict[str, bytes] = field(default_factory=dict)
    artifacts: list[Uploaded] = field(default_factory=list)
    exit_code: int | None = None

    @property
    def rows(self) -> list[dict]:
        return [json.loads(line) for line in self.lines.get("wandb-history.jsonl", [])]

    @property
    def summary(self) -> dict:
        return json.loads(self.lines.get("wandb-summary.json", ["{}"])[-1])

    def stream(self, sent: dict) -> None:
        """What a file_stream request brings: lines, each at its place, and how the run ended."""
        for name, part in (sent.get("files") or {}).items():
            kept = self.lines.setdefault(name, [])
            offset = part["offset"]
            assert offset <= len(kept), f"{name} would have a gap: {len(kept)} lines, then line {offset}"
            kept[offset : offset + len(part["content"])] = part["content"]
        self.exit_code = sent.get("exitcode") if sent.get("complete") else None


class Server:
    """`with Server() as server`: processes started with `env | server.env` speak to it.

    `stop` closes it, `start` opens it again at the same address with all it had; while `silent`, it takes what is
    sent and never answers; with a status in `refusing`, 401 say, it refuses every key.
    """

    def __init__(self):
        self.refusing: int | None = None
        self.runs: dict[tuple[str, str], Tracked] = {}  # by project and id
        self.artifacts: dict[str, Uploaded] = {}
        self.unknown: list[str] = []
        self.keys, self.silent, self.port, self._http = {KEY}, threading.Event(), 0, None

    def __enter__(self) -> "Server":
        return self.start()

    def __exit__(self, *_) -> None:
        self.silent.clear()
        self.stop()

    def start(self) -> "Server":
        self._http = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._http.lab, self._http.daemon_threads, self.port = self, True, self._http.server_port
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def stop(self) -> None:
        if self._http:
            self._http.shutdown()
            self._http.server_close()
            self._http = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def env(self) -> dict[str, str]:
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY}

    @property
    def run(self) -> Tracked:
        """The only one there is."""
        (run,) = self.runs.values()
        return run

    def at(self, kind: str, *path: str) -> str:
        return "/".join([self.url, kind, *(quote(part, safe="") for part in path)])

    # -- GraphQL: a method for each operation

    def Viewer(self, _) -> dict:
        return {"viewer": {"id": "1", "entity": "me", "username": "me", "email": "", "flags": "{}",
                           "teams": {"edges": []}}}  # fmt: skip

    def ServerFeaturesQuery(self, _) -> dict:
        return {"serverInfo": {"features": []}}

    def OrganizationCoreWeaveOrganizationID(self, _) -> dict:
        return {"entity": {"organization": {"coreWeaveOrganizationId": None}}}

    def XXHashDigestsEnabled(self, _) -> dict:
        return {"entity": {"xxhashDigestsEnabled": False}}

    def RunStoppedStatus(self, _) -> dict:
        return {"project": {"run": {"stopped": False}}}

    def UpsertBucket(self, v: dict) -> dict:
        where = v.get("project") or "uncategorized", v["name"]
        inserted = where not in self.runs
        run = self.runs.setdefault(where, Tracked(v.get("entity") or "me", *where))
        run.fields |= {key: value for key, value in v.items() if value is not None}
        run.config |= {key: item["value"] for key, item in json.loads(v.get("config") or "{}").items()}
        return {"upsertBucket": {"bucket": self._bucket(run), "inserted": inserted}}

    def RunResumeStatus(self, v: dict) -> dict:
        run = self.runs.get((v["project"], v["name"]))
        project = {"id": "1", "name": v["project"], "entity": {"id": "1", "name": v.get("entity") or "me"}}
        return {"model": project | {"bucket": run and self._bucket(run)}}

    def _bucket(self, run: Tracked) -> dict:
        streamed = {name: len(run.lines.get(file, [])) for name, file in (
            ("logLineCount", "output.log"), ("historyLineCount", "wandb-history.jsonl"),
            ("eventsLineCount", "wandb-events.jsonl"))}  # fmt: skip
        config = {key: {"value": value} for key, value in run.config.items()}
        return streamed | {
            "id": run.id, "name": run.id, "displayName": run.fields.get("displayName"), "sweepName": None,
            "project": {"id": "1", "name": run.project, "entity": {"id": "1", "name": run.entity}},
            "summaryMetrics": json.dumps(run.summary), "config": json.dumps(config),
            "historyTail": json.dumps(run.lines.get("wandb-history.jsonl", [])[-1:]),
            "eventsTail": json.dumps(run.lines.get("wandb-events.jsonl", [])[-1:]),
            "tags": run.fields.get("tags"), "notes": run.fields.get("notes"), "wandbConfig": json.dumps({"t": 1}),
        }  # fmt: skip

    def CreateRunFiles(self, v: dict) -> dict:
        files = [{"name": name, "uploadUrl": self.at("put", v["project"], v["run"], name)} for name in v["files"]]
        return {"createRunFiles": {"runID": v["run"], "uploadHeaders": [], "files": files}}

    # -- artifacts, on their way in

    def CreateArtifact(self, v: dict) -> dict:
        v = v["input"]
        run, name = self.runs[v["projectName"], v["runName"]], v["artifactCollectionName"]
        versions = [a for a in self.artifacts.values() if (a.run.project, a.name) == (run.project, name)]
        same = [a for a in versions if a.digest == v["digest"]]
        found = same[0] if same else Uploaded(f"artifact{len(self.artifacts)}", run, name, v["artifactTypeName"],
                                              v["digest"], len(versions), v.get("metadata"))  # fmt: skip
        if not same:
            self.artifacts[found.id] = found
            run.artifacts.append(found)
        latest = {"id": versions[-1].id} if versions else None
        return {"createArtifact": {"artifact": {"id": found.id, "state": found.state,
                                                "artifactSequence": {"latestArtifact": latest}}}}  # fmt: skip

    def CreateArtifactFiles(self, v: dict) -> dict:
        nodes = [{"storagePath": f["name"], "uploadUrl": self.at("put-artifact", f["artifactID"], f["name"]),
                  "uploadHeaders": [], "uploadMultipartUrls": None, "artifact": {"id": f["artifactID"]}}
                 for f in v["input"]["artifactFiles"]]  # fmt: skip
        return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}

    def CreateArtifactManifest(self, v: dict) -> dict:
        file = {"id": "1", "uploadUrl": self.at("put-manifest", v["artifactID"]), "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": v["artifactID"], "file": file}}}

    def UpdateArtifactManifest(self, v: dict) -> dict:
        file = {"id": "1", "uploadUrl": self.at("put-manifest", v["artifactManifestID"]), "uploadHeaders": []}
        return {"updateArtifactManifest": {"artifactManifest": {"id": v["artifactManifestID"], "file": file}}}

    def CommitArtifact(self, v: dict) -> dict:
        artifact = self.artifacts[v["artifactID"]]
        artifact.state = "COMMITTED"
        return {"commitArtifact": {"artifact": {"id": artifact.id, "digest": artifact.digest}}}

    def ArtifactType(self, v: dict) -> dict:
        name = v["name"].partition(":")[0]
        found = [a for a in self.artifacts.values() if (a.run.project, a.name) == (v["project"], name)]
        return {"project": {"artifact": {"artifactType": {"name": found[0].type}} if found else None}}

    # -- and on their way out

    def Run(self, v: dict) -> dict:
        run = self.runs.get((v["project"], v["name"]))
        if not run or run.entity != v["entity"]:
            return {"project": None}
        more = {"projectId": "1", "state": "finished", "group": run.fields.get("groupName"), "readOnly": False,
                "historyKeys": None, "systemMetrics": "{}", "user": {"name": "me", "username": "me"}}  # fmt: skip
        return {"project": {"run": self._bucket(run) | more}}

    def RunOutputArtifacts(self, v: dict) -> dict:
        versions = [a for a in self.runs[v["project"], v["run"]].artifacts if a.state == "COMMITTED"]
        edges = [{"node": self._artifact(a), "cursor": ""} for a in versions]
        connection = {"totalCount": len(edges), "pageInfo": {"endCursor": None, "hasNextPage": False}, "edges": edges}
        return {"project": {"run": {"artifacts": connection}}}

    def ArtifactByID(self, v: dict) -> dict:
        return {"artifact": self._artifact(self.artifacts[v["id"]])}

    def _artifact(self, a: Uploaded) -> dict:
        project = {"id": "1", "internalId": "1", "name": a.run.project, "entity": {"name": a.run.entity}}
        return {
            "__typename": "Artifact", "id": a.id, "versionIndex": a.version, "artifactType": {"name": a.type},
            "artifactSequence": {"__typename": "ArtifactSequence", "name": a.name, "project": project},
            "description": None, "metadata": a.metadata, "ttlDurationSeconds": -1, "ttlIsInherited": True, "tags": [],
            "historyStep": None, "state": a.state, "size": sum(map(len, a.files.values())), "digest": a.digest,
            "digestAlgorithm": None, "commitHash": "1", "fileCount": len(a.files), "aliases": [],
            "createdAt": "2020-01-01T00:00:00", "updatedAt": None,
        }  # fmt: skip

    def FetchArtifactManifest(self, v: dict) -> dict:
        return {"artifact": {"currentManifest": {"file": {"directUrl": self.at("get-manifest", v["id"])}}}}

    def GetArtifactMembershipFileUrls(self, v: dict) -> dict:
        (a,) = [a for a in self.artifacts.values()
                if (a.run.project, a.name, f"v{a.version}") == (v["project"], v["collection"], v["alias"])]  # fmt: skip
        nodes = [{"__typename": "File", "name": name, "directUrl": self.at("get-artifact", a.id, name)}
                 for name in a.files]  # fmt: skip
        files = {"pageInfo": {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False},
                 "edges": [{"node": node} for node in nodes]}  # fmt: skip
        collection = {"__typename": "ArtifactSequence", "artifactMembership": {"files": files}}
        return {"project": {"artifactCollection": collection}}

    # -- files

    def put(self, kind: str, path: list[str], data: bytes) -> None:
        if kind == "put":
            self.runs[path[0], path[1]].files[path[2]] = data
        elif kind == "put-manifest":
            self.artifacts[path[0]].manifest = data
        else:
            self.artifacts[path[0]].files[path[1]] = data

    def get(self, kind: str, path: list[str]) -> bytes:
        artifact = self.artifacts[path[0]]
        return artifact.manifest if kind == "get-manifest" else artifact.files[path[1]]


class Handler(BaseHTTPRequestHandler):
    """Of one request: connections are not kept, so that a closed server is closed at once."""

    def log_message(self, *_) -> None:
        pass

    def _path(self) -> list[str]:
        return [unquote(part) for part in self.path.partition("?")[0].strip("/").split("/")]

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        while self.server.lab.silent.is_set():
            time.sleep(0.1)
        return body

    def do_GET(self) -> None:
        kind, *path = self._path()
        self._body()
        self._answer(200, self.server.lab.get(kind, path) if kind.startswith("get-") else b"")

    def do_PUT(self) -> None:
        kind, *path = self._path()
        self.server.lab.put(kind, path, self._body())
        self._answer(200, b"")

    def do_POST(self) -> None:
        lab, path, sent = self.server.lab, self._path(), self._body()
        if path[-1] not in ("graphql", "file_stream"):  # telemetry
            return self._answer(200, b"{}")
        key = b64decode(self.headers.get("Authorization", "").removeprefix("Basic ")).decode().partition(":")[2]
        if lab.refusing:
            return self._answer(lab.refusing, b'{"errors": [{"message": "user is not logged in"}]}')
        if key not in lab.keys:
            return self._answer(401, b'{"errors": [{"message": "user is not logged in"}]}')
        sent = json.loads(sent)
        if path[-1] == "file_stream":
            lab.runs[path[2], path[3]].stream(sent)
            return self._answer(200, b"{}")
        name = re.search(r"(?:query|mutation)\s+(\w+)", sent["query"])[1]
        if not hasattr(lab, name):
            lab.unknown.append(name)
            return self._answer(400, json.dumps({"errors": [{"message": f"unknown operation {name}"}]}).encode())
        self._answer(200, json.dumps({"data": getattr(lab, name)(sent.get("variables") or {})}).encode())

    def _answer(self, status: int, body: bytes) -> None:
        with contextlib.suppress(ConnectionError):  # who asked may have given up
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body)
