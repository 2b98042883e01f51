"""The W&B report, saved by W&B's own library on a stand-in server that keeps what it is sent.

Bound to wandb-workspaces 0.4: if it asks other questions of the server, answer them in `ANSWERS`.
"""

import json
import subprocess
import sys
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from run_folders import write_run
from stated import stated

from rl_lab.core.comparing import report
from rl_lab.core.comparing.compare import analyse
from rl_lab.core.errors import UserError
from rl_lab.core.tracking import wandb_run

compare = stated("command/rl/compare")

TRACKER = partial(wandb_run, project="lab", entity=None)
PROJECT = {"id": "P", "internalId": "UHJvamVjdEludGVybmFsSWQ6MQ==", "name": "lab", "entityName": "me"}
ANSWERS = {
    "viewer": {"id": "V", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}},
    "project": PROJECT,
    "models": {"edges": [], "pageInfo": {"hasNextPage": False, "endCursor": None}},
    "result": {"project": PROJECT, "model": PROJECT, "inserted": True},
}


@pytest.fixture
def runs(tmp_path):
    for agent, last in (("dqn", 10), ("a2c", 5)):
        for task in ("A", "B"):
            write_run(tmp_path / "runs" / agent / task, [0, last / 2, last], name=f"{agent}_{task.lower()}",
                      choices={"agent": agent, "env": "gym"}, top={"env": {"id": task}})  # fmt: skip
    return tmp_path / "runs"


@pytest.fixture
def server(monkeypatch):
    """The views that were sent; the library is pointed at it."""
    views = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self):
            self.reply(b"{}")

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if not self.path.endswith("graphql"):  # telemetry
                return self.reply(b"{}")
            sent = json.loads(body)
            if "upsertView" in sent["query"]:
                views.append(sent["variables"])
            view = {key: (sent.get("variables") or {}).get(key) for key in ("displayName", "description", "spec")}
            view |= {"id": "VmlldzoxMjM0", "name": "n", "type": "runs", "project": PROJECT, "user": {"name": "me"},
                     "createdAt": "2026-01-01T00:00:00", "updatedAt": "2026-01-01T00:00:00", "previewUrl": None}  # fmt: skip
            view["user"] |= {"username": "me", "userInfo": {}}
            self.reply(json.dumps({"data": ANSWERS | {"upsertView": {"view": view, "inserted": True}}}).encode())

        def reply(self, data):
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    yield views
    server.shutdown()
    server.server_close()


def fresh(code: str, *arguments) -> subprocess.CompletedProcess:
    """wandb reads the server's address once a process."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=90
    )


SAVE = """
import sys
from functools import partial
from pathlib import Path
from rl_lab.core.comparing import report
from rl_lab.core.comparing.compare import analyse
from rl_lab.core.errors import UserError
from rl_lab.core.tracking import wandb_run
tracker = partial(wandb_run, project="lab", entity=None, init_timeout=2)
try:
    project = report.project(tracker)
    results, _ = analyse([Path(sys.argv[1])], resamples=20)
    print(report.save(results, ["a caption"], project))
except UserError as error:
    print("refused:", error)
"""


def test_the_report_has_the_aggregates_and_live_panels_of_each_task_grouped_by_agent(runs, server):
    pytest.importorskip("wandb_workspaces")
    done = fresh(SAVE, runs)
    assert done.stdout.split("\n")[-2].endswith("/me/lab/reports/eval/return--VmlldzoxMjM0"), done.stderr
    (view,) = server
    assert (view["entityName"], view["projectName"], view["displayName"]) == ("me", "lab", "eval/return")
    assert view["description"] == "2 groups, 4 runs"
    blocks = json.loads(view["spec"])["blocks"]
    (table,) = [block["content"] for block in blocks if block["type"] == "markdown-block"]
    assert table.splitlines()[0] == "| group | IQM | median | mean | optimality gap |"
    assert table.splitlines()[2] == "| `dqn` | 1 n=1 | 1 n=1 | 1 n=1 | 0 n=1 |"
    assert [block["children"][0]["text"] for block in blocks if block["type"] == "heading"] == ["A", "B"]
    grids = [block["metadata"] for block in blocks if block["type"] == "panel-grid"]
    for grid, names in zip(grids, (["a2c_a", "dqn_a"], ["a2c_b", "dqn_b"]), strict=True):
        (shown,) = grid["runSets"]
        assert shown["grouping"] == [{"section": "config", "name": "agent.value"}]
        (condition,) = shown["filters"]["filters"]
        assert (condition["key"]["name"], condition["op"], condition["value"]) == ("group", "IN", names)
        assert [panel["config"]["metrics"] for panel in grid["panelBankSectionConfig"]["panels"]] == [
            ["eval/return"]
        ] * 2


def test_one_task_shows_its_scores(runs):
    results, _ = analyse([runs / "dqn" / "A", runs / "a2c" / "A"], resamples=20)
    assert report.markdown(results).splitlines()[2] == "| `dqn_a` | 10 n=1 | 5 n=1 |"


def test_without_wandb(runs, tmp_path):
    for tracker in (None, lambda **_: None):
        with pytest.raises(UserError) as error:
            compare([runs], report=True, tracker=tracker, out=tmp_path / "out")
        assert str(error.value) == "report=true needs W&B; leave out tracker=none"
    assert not (tmp_path / "out").exists()  # said before any work


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(UserError) as error:
        report.project(TRACKER)
    assert str(error.value) == 'report=true needs wandb-workspaces; pip install "rl-lab[report]"'


def test_without_a_server(runs, server, monkeypatch):
    pytest.importorskip("wandb_workspaces")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    done = fresh(SAVE, runs)
    assert done.stdout.strip().split("\n")[-1] == (
        "refused: report=true: http://127.0.0.1:9 does not answer; leave out report=true to get the other files"
    )
