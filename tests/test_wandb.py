"""W&B for real: its own client in processes of its own, speaking HTTP to a stand-in for its server.

What the client asks of a server is no public interface: these tests hold for wandb 0.31, which pyproject.toml pins.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import wandb
from wandb_server import Server, Tracked

MOVED = (
    f"wandb {wandb.__version__} asks the server for {{}}, which tests/wandb_server.py does not know: for each, see the "
    "query in wandb/sdk or wandb/apis (or `strings wandb/bin/wandb-core`), give Server a method of its name, and then "
    "raise wandb's upper bound in pyproject.toml"
)


@pytest.fixture(scope="module")
def server():
    with Server() as server:
        yield server
        assert not server.unknown, MOVED.format(", ".join(sorted(set(server.unknown))))


@pytest.fixture
def fresh():
    with Server() as server:
        yield server
        assert not server.unknown, MOVED.format(", ".join(sorted(set(server.unknown))))


def start(cwd: Path, *command: str, **env: str) -> subprocess.Popen:
    """A command of ours or wandb's, with nothing of the user's own W&B."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    own = {f"WANDB_{kind}_DIR": str(cwd / f"own/{kind}") for kind in ("CONFIG", "CACHE", "DATA")}
    command = [sys.executable, *command] if command[0] == "-c" else [sys.executable, "-m", *command]
    return subprocess.Popen(command, cwd=cwd, env=clean | own | {"NETRC": str(cwd / "netrc")} | env,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip


def call(cwd: Path, *command: str, code: int | None = 0, **env: str) -> str:
    """What it printed, stdout and stderr."""
    process = start(cwd, *command, **env)
    try:
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert code is None or process.returncode == code, out + err
    return out + err


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def plain(run: Tracked) -> list[dict]:
    """The rows of numbers, without what W&B adds to each."""
    rows = [{k: v for k, v in row.items() if not k.startswith("_")} for row in run.rows]
    return [row for row in rows if not any(isinstance(v, dict) for v in row.values())]


def media(run: Tracked) -> dict[tuple[str, int], bytes]:
    """What stands under each name at each step."""
    return {(name, row["step"]): run.files[value["path"]]
            for row in run.rows for name, value in row.items() if isinstance(value, dict)}  # fmt: skip


def axes(run: Tracked) -> dict[str, str]:
    """Metric, or pattern of metrics -> metric on its x-axis. Numbers are W&B's names of fields."""
    metrics = run.config["_wandb"]["m"]
    return {m.get("1") or m["2"]: metrics[m["5"] - 1]["1"] for m in metrics if "5" in m}


# -- a whole run


PLAN = ("rl_lab", "train", "experiment=value_iteration_russell_norvig", "device=cpu", "hydra.run.dir=run")


@pytest.fixture(scope="module")
def planned(server, tmp_path_factory) -> tuple[Path, Tracked]:
    """A run whose folder is gone after it has been copied: as seen from another machine."""
    cwd = tmp_path_factory.mktemp("planned")
    call(cwd, *PLAN, "checkpoint.upload=true", "tracker.tags=[a,b]", "tracker.notes=of old", "tracker.entity=team",
         "tracker.project=p", "tracker.group=g", **server.env)  # fmt: skip
    kept = tmp_path_factory.mktemp("kept") / "run"
    (cwd / "run").rename(kept)
    (run,) = [run for run in server.runs.values() if run.project == "p"]
    return kept, run


def test_what_was_said_of_the_run_arrives(planned):
    _, run = planned
    said = {k: run.fields[k] for k in ("displayName", "groupName", "jobType", "tags", "notes")}
    assert said == {"displayName": "value_iteration_russell_norvig-run", "groupName": "g", "jobType": "plan",
                    "tags": ["a", "b"], "notes": "of old"}  # fmt: skip
    assert (run.entity, run.project, run.exit_code, run.summary["state"]) == ("team", "p", 0, "finished")
    names = {k: run.config[k] for k in ("experiment", "planner", "env", "seed")}
    assert names == {"experiment": "value_iteration_russell_norvig", "planner": "value_iteration",
                     "env": "russell_norvig", "seed": 0}  # fmt: skip
    assert run.config["settings"]["env"]["mdp"]["living_reward"] == -0.04


def test_every_row_arrives_on_the_axis_of_steps(planned):
    folder, run = planned
    assert plain(run) == lines(folder) and len(plain(run)) == 39
    assert axes(run) == {"*": "step"}


def test_pictures_and_film_arrive(planned):
    folder, run = planned
    assert media(run) == {
        ("plan/values", 38): (folder / "pictures/values.png").read_bytes(),
        ("plan/q", 38): (folder / "pictures/q.png").read_bytes(),
        ("plan/sweeps", 38): (folder / "videos/sweeps.mp4").read_bytes(),
    }


def test_the_run_folder_arrives_as_an_artifact(planned):
    folder, run = planned
    (artifact,) = run.artifacts
    assert (artifact.type, artifact.name, artifact.state) == ("checkpoint", run.id, "COMMITTED")
    names = "config.yaml", "metrics.jsonl", "summary.json", "checkpoint.pt"
    assert artifact.files == {name: (folder / name).read_bytes() for name in names}


# -- and back


def test_a_run_is_fetched_once_and_played(server, planned, tmp_path):
    _, run = planned
    played = "rl_lab", "evaluate", f"run=wandb:team/p/{run.id}", "episodes=20", "device=cpu"
    call(tmp_path, *played, **server.env)
    folder = tmp_path / f"runs/wandb-fetched/team/p/{run.id}-v0"
    fetched = {path.name: path.read_bytes() for path in folder.iterdir()}
    played = json.loads(fetched.pop("evaluation.json"))
    assert fetched == run.artifacts[0].files and (played["step"], played["scores"]["eval/return"] > 0.5) == (38, True)


FETCHES = """
import sys
from rl_lab.core import registry
from rl_lab.core.errors import UserError
for address in sys.argv[1:]:
    try:
        print(registry.fetch(address))
    except UserError as error:
        print(error)
"""


def fetches(cwd: Path, *addresses: str, **env: str) -> list[str]:
    return call(cwd, "-c", FETCHES, *addresses, **env).splitlines()


def test_what_cannot_be_fetched_is_said_in_a_line(server, planned, tmp_path):
    _, run = planned
    server.runs["p", "bare"] = Tracked("team", "p", "bare")
    path, form = (
        f"team/p/{run.id}",
        "write run=wandb:<entity>/<project>/<run>, and :v2 behind it for an earlier version",
    )
    there = f"runs/wandb-fetched/{path}-v0"
    told = {
        f"{server.url}/team/p/runs/{run.id}?nw=1": there,
        f"{path}:v0": there,
        f"{path}:v7": f"W&B holds no v7 of {path}, only v0",
        "team/p/none": f"no run team/p/none at {server.url}, or none that this key may see",
        "team/p/bare": "W&B holds no checkpoint of team/p/bare; train with checkpoint.upload=true keeps one there",
        "p/x": f"wandb:p/x names no run; {form}",
        "team/p/..": f"wandb:team/p/.. names no run; {form}",
        f"{path}:best": f"wandb:{path}:best: 'best' is no version; {form}",
    }
    assert fetches(tmp_path, *told, **server.env) == list(told.values())
    key = f"run=wandb:{path} needs a W&B key, and none is used here; wandb login, or give WANDB_API_KEY (and no WANDB_MODE=offline)"
    assert fetches(tmp_path, path, WANDB_BASE_URL=server.url) == [key]


def test_damage_on_the_way_is_refused(server, planned, tmp_path):
    _, run = planned
    (artifact,) = run.artifacts
    whole, path = dict(artifact.files), f"team/p/{run.id}"
    try:
        artifact.files["checkpoint.pt"] = whole["checkpoint.pt"][:-1] + b"!"
        (line,) = fetches(tmp_path, path, **server.env)
        assert line == f"{run.id}:v0 did not arrive as it was sent: Digest mismatch for file: checkpoint.pt; try again"
        assert not list(tmp_path.glob("runs/wandb-fetched/team/p/*"))
    finally:
        artifact.files = whole


# -- servers and processes that are lost

LOOP = """
import sys, time
from functools import partial
from pathlib import Path
from rl_lab.core import conf_dir
from rl_lab.core.reading import plain
from rl_lab.core.run import Run
from rl_lab.core.tracking import wandb_run

total, crash = int(sys.argv[1]), "crash" in sys.argv
often = 0.0 if "often" in sys.argv else 0.5  # seconds
settings = {k: v for k, v in plain(conf_dir() / "tracker/wandb.yaml").items() if not k.startswith("_")}
tracker = partial(wandb_run, **settings | {"finish_timeout": 5})
with Run(Path("run"), 0, "cpu", names={"name": "loop", "seed": 0}, config={"total": total}, written="name: loop",
         tracker=tracker, checkpoint_every=often, upload="upload" in sys.argv) as run:
    first = run.restore({})
    run.begin(total)
    for step in range(first, total):
        run.pause(step, {})
        run.log({"x": step / 7, "y": step % 13}, step)
        time.sleep(0.02)
    if crash:
        1 / 0
    run.save(total, {})
"""


def until(there, what: str = "", seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def logged(cwd: Path, count: int) -> None:
    """Waits until so many rows are in the run's file."""
    path = cwd / "run/metrics.jsonl"
    until(lambda: path.exists() and path.read_bytes().count(b"\n") >= count, f"{count} rows")


def kept(cwd: Path) -> list[str]:
    """W&B's folders of the run, in the order of their making."""
    return sorted(str(path.relative_to(cwd)) for path in cwd.glob("runs/wandb/*run-*"))


def steps(rows: list[dict]) -> list[int]:
    return [row["step"] for row in rows]


def distinct(rows: list[dict]) -> list[dict]:
    """Without repetitions: `wandb sync` sends again, after what has arrived, all that a sitting logged."""
    return list({json.dumps(row, sort_keys=True): row for row in rows}.values())


def pauses(cwd: Path) -> float:
    """The longest time between two rows [s]."""
    seconds = [row["seconds"] for row in lines(cwd / "run")]
    return max(b - a for a, b in zip(seconds, seconds[1:], strict=False))


@pytest.mark.slow
@pytest.mark.parametrize("silent", [False, True], ids=["closed", "silent"])
def test_a_server_that_is_lost_and_comes_back_misses_nothing(fresh, tmp_path, silent):
    process = start(tmp_path, "-c", LOOP, "900", **fresh.env)
    logged(tmp_path, 100)
    fresh.silent.set() if silent else fresh.stop()
    logged(tmp_path, 400)
    fresh.silent.clear() if silent else fresh.start()
    assert process.wait(120) == 0 and "W&B" not in process.stderr.read()
    assert pauses(tmp_path) < 2
    assert plain(fresh.run) == lines(tmp_path / "run") and (len(fresh.run.rows), fresh.run.exit_code) == (900, 0)


@pytest.mark.slow
@pytest.mark.parametrize("silent", [False, True], ids=["closed", "silent"])
def test_a_server_that_stays_lost_gets_the_rest_by_wandb_sync(fresh, tmp_path, silent):
    process = start(tmp_path, "-c", LOOP, "300", "upload", **fresh.env)
    logged(tmp_path, 100)
    fresh.silent.set() if silent else fresh.stop()
    logged(tmp_path, 300)
    began = time.monotonic()
    _, told = process.communicate(timeout=120)
    print("after the last row", time.monotonic() - began, "s; longest pause", pauses(tmp_path), "s")
    (folder,) = kept(tmp_path)
    assert process.returncode == 0, told
    assert told.splitlines()[-2:] == [
        "W&B did not take the checkpoint (no answer within 2 s); it is in run, and resuming that run sends it",
        f"W&B did not take all of it within 5 s; wandb sync --no-skip-online {folder} sends the rest",
    ]
    assert pauses(tmp_path) < 2 and len(fresh.run.rows) < 300 and fresh.run.exit_code is None
    fresh.silent.clear() if silent else fresh.start()
    call(tmp_path, "wandb", "sync", "--no-skip-online", folder, **fresh.env)
    assert distinct(plain(fresh.run)) == lines(tmp_path / "run") and len(lines(tmp_path / "run")) == 300
    assert fresh.run.exit_code == 0


@pytest.mark.slow
@pytest.mark.parametrize(("status", "words"), [(401, "401 Unauthorized"), (403, "403 Forbidden")])
def test_a_key_that_is_refused_in_mid_run_is_said_and_wandb_sync_sends_the_rest(fresh, tmp_path, status, words):
    process = start(tmp_path, "-c", LOOP, "300", **fresh.env)
    logged(tmp_path, 100)
    fresh.refusing = status
    _, told = process.communicate(timeout=120)
    (folder,) = kept(tmp_path)
    assert process.returncode == 0, told
    assert told.splitlines() == [f"W&B lacks rows ({words}); wandb sync --no-skip-online {folder} sends them"]
    assert json.loads((tmp_path / "run/summary.json").read_text())["state"] == "finished"
    assert len(lines(tmp_path / "run")) == 300 > len(plain(fresh.run))
    fresh.refusing = None
    call(tmp_path, "wandb", "sync", "--no-skip-online", folder, **fresh.env)
    assert distinct(plain(fresh.run)) == lines(tmp_path / "run")


@pytest.mark.slow
def test_a_full_disk_of_wandb_is_said_and_the_run_is_whole(tmp_path):
    """For real: W&B's folder is a disk of its own, and full."""
    disk = tmp_path / "runs/wandb"
    disk.mkdir(parents=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        process = start(tmp_path, "-c", LOOP, "200", WANDB_MODE="offline")
        logged(tmp_path, 50)
        with pytest.raises(OSError), open(disk / "filler", "wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        _, told = process.communicate(timeout=120)
        (folder,) = kept(tmp_path)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
    assert process.returncode == 0, told
    assert told.splitlines() == [
        f"W&B lacks rows: it could not write to {folder} (No space left on device); metrics.jsonl has all of them, and "
        f"wandb sync {folder} sends those that are there"
    ]
    assert steps(lines(tmp_path / "run")) == list(range(200))


@pytest.mark.slow
def test_a_service_of_wandb_that_is_killed_leaves_the_run_alone(tmp_path):
    process = start(tmp_path, "-c", LOOP, "200", WANDB_MODE="offline")
    logged(tmp_path, 50)
    found = subprocess.run(["pgrep", "-P", str(process.pid), "-f", "wandb-core"], capture_output=True, text=True).stdout
    for number in found.split():
        os.kill(int(number), signal.SIGKILL)
    _, told = process.communicate(timeout=120)
    assert found and process.returncode == 0, told
    assert steps(lines(tmp_path / "run")) == list(range(200))
    assert "W&B lacks rows" in told


@pytest.mark.slow
def test_what_wandb_cannot_start_with_is_one_line(tmp_path):
    """A mode it has not, an environment it does not take, an installation that is broken."""
    (tmp_path / "broken/wandb").mkdir(parents=True)
    (tmp_path / "broken/wandb/__init__.py").write_text("import nothing_of_this_name")
    cases = {
        "WANDB_MODE=zzz is none of W&B's; choose from online, offline, disabled": {"WANDB_MODE": "zzz"},
        "W&B does not take its settings (": {"WANDB_INIT_TIMEOUT": "soon"},
        "wandb cannot be imported (ModuleNotFoundError: No module named 'nothing_of_this_name')": {
            "PYTHONPATH": f"{tmp_path}/broken:{Path(__file__).parents[1]}"
        },
    }
    for words, env in cases.items():
        told = call(tmp_path, *PLAN, code=2, **env).splitlines()
        assert told[-1].startswith(f"rl-lab: {words}") and "tracker=none" in told[-1], told
        assert not (tmp_path / "run").exists()
    told = call(tmp_path, *PLAN, "tracker.mode=offline", code=2, WANDB_MODE="zzz")
    assert told.startswith("rl-lab: WANDB_MODE=zzz is none of W&B's; ") and told.count("\n") == 1


def test_an_empty_variable_is_as_good_as_none(tmp_path):
    code = "from rl_lab.core import tracking; print(tracking.ready().setup().settings.mode)"
    assert call(tmp_path, "-c", code, WANDB_MODE="", WANDB_BASE_URL=" ") == "online\n"


@pytest.mark.slow
def test_offline_then_sync(fresh, tmp_path):
    call(tmp_path, "-c", LOOP, "50", "upload", WANDB_MODE="offline")
    call(tmp_path, "wandb", "sync", *kept(tmp_path), **fresh.env)
    assert plain(fresh.run) == lines(tmp_path / "run") and steps(plain(fresh.run)) == list(range(50))
    assert (fresh.run.exit_code, fresh.run.fields["groupName"], axes(fresh.run)) == (0, "loop", {"*": "step"})
    assert fresh.run.artifacts[0].files["checkpoint.pt"] == (tmp_path / "run/checkpoint.pt").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("online", [False, True], ids=["offline", "online"])
def test_killed_resumed_and_synced_is_one_run_with_every_row(fresh, tmp_path, online):
    """Offline, each sitting leaves a folder of its own; the first lacks at most the last two seconds.

    The checkpoint is as new as can be: what W&B lacks of the rows before it is not played again.
    """
    env = fresh.env if online else {"WANDB_MODE": "offline"}
    process = start(tmp_path, "-c", LOOP, "200", "often", **env)
    logged(tmp_path, 150)
    process.kill()
    process.wait()
    before = lines(tmp_path / "run")
    if online:
        assert fresh.run.exit_code is None
    else:
        call(tmp_path, "wandb", "sync", *kept(tmp_path), code=None, **fresh.env)
    arrived = plain(fresh.run)
    assert arrived == before[: len(arrived)]
    assert online or before[-1]["seconds"] - arrived[-1]["seconds"] < 2
    call(tmp_path, "-c", LOOP, "200", "often", **env)
    if not online:
        assert len(kept(tmp_path)) == 2
        call(tmp_path, "wandb", "sync", kept(tmp_path)[-1], **fresh.env)
    after, whole = plain(fresh.run), lines(tmp_path / "run")
    again = after[len(arrived) :]
    first = again[0]["step"]
    print(f"killed at {len(before)}, {len(arrived)} rows had arrived, {first} is the first of the second sitting")
    assert first <= len(arrived) and again == whole[first:]
    assert steps(whole) == list(range(200)) and (fresh.run.exit_code, axes(fresh.run)) == (0, {"*": "step"})
    values = [{(row["x"], row["y"]) for row in after if row["step"] == step} for step in range(200)]
    assert values == [{(step / 7, step % 13)} for step in range(200)]


@pytest.mark.slow
def test_how_a_run_ended_is_known_there(fresh, tmp_path):
    ends = {"crash": (1, "failed"), "SIGTERM": (255, "stopped")}
    for name, (told, state) in ends.items():
        (cwd := tmp_path / name).mkdir()
        process = start(cwd, "-c", LOOP, "50", name, WANDB_PROJECT=name, **fresh.env)
        if name != "crash":
            logged(cwd, 10)
            process.send_signal(getattr(signal, name))
        process.wait(120)
        (run,) = [run for run in fresh.runs.values() if run.project == name]
        assert (run.exit_code, run.summary["state"]) == (told, state), process.stderr.read()
        assert plain(run) == lines(cwd / "run")


# -- other runs, whole


@pytest.mark.slow
def test_an_agent_is_trained_then_fetched_elsewhere_and_trained_further_as_one_run(fresh, tmp_path):
    tiny = ("experiment=dqn_four_rooms", "device=cpu", "loop.eval_every=2_000", "loop.eval_episodes=32",
            "loop.log_every=500", "agent.learning_starts=500", "env.num_envs=20")  # fmt: skip
    call(tmp_path, "rl_lab", "train", *tiny, "loop.total_steps=2_000", "hydra.run.dir=run", "checkpoint.upload=true",
         **fresh.env)  # fmt: skip
    first = lines(tmp_path / "run")
    assert plain(fresh.run) == first and (steps(first)[-1], axes(fresh.run)) == (2_000, {"*": "step"})
    (tmp_path / "run").rename(tmp_path / "gone")
    path = f"me/rl-lab/{fresh.run.id}"
    call(tmp_path, "rl_lab", "train", f"run=wandb:{path}", "loop.total_steps=4_000", **fresh.env)
    second = lines(tmp_path / f"runs/wandb-fetched/{path}-v0")
    assert (steps(second)[-1], fresh.run.exit_code, fresh.run.fields["displayName"]) == (4_000, 0, "dqn_four_rooms-run")
    assert plain(fresh.run) == first + second[len(second) - (len(plain(fresh.run)) - len(first)) :]
    assert {row["step"]: row for row in plain(fresh.run)} == {row["step"]: row for row in second}
    assert fresh.run.config["settings"]["loop"]["total_steps"] == 4_000
    assert [artifact.version for artifact in fresh.run.artifacts] == [0, 1]
    checkpoint = tmp_path / f"runs/wandb-fetched/{path}-v0/checkpoint.pt"
    assert fresh.run.artifacts[1].files["checkpoint.pt"] == checkpoint.read_bytes()


@pytest.mark.slow
def test_a_model_arrives_and_its_samples_join_it(fresh, tmp_path):
    tiny = "experiment=vae_digits", "device=cpu", "loop.total_steps=20", "loop.eval_every=10", "loop.log_every=5"
    for seed in "01":
        call(tmp_path, "gen_lab", "train", *tiny, f"seed={seed}", f"hydra.run.dir=vae{seed}", **fresh.env)
    call(tmp_path, "gen_lab", "compare", "vae0", "vae1", "out=out", **fresh.env)
    call(tmp_path, "gen_lab", "sample", "vae0", "count=4", **fresh.env)
    runs = {run.fields["displayName"]: run for run in fresh.runs.values()}
    for seed in "01":
        run, folder = runs[f"vae_digits-vae{seed}"], tmp_path / f"vae{seed}"
        assert plain(run) == lines(folder) and (run.config["model"], run.exit_code) == ("vae", 0)
        drawn = {(path.stem.rpartition("_")[0], int(path.stem.rpartition("_")[2])): path.read_bytes()
                 for path in (folder / "pictures").glob("*_0*.png")}  # fmt: skip
        film = {("training", 20): (folder / "videos/training.gif").read_bytes()}
        joined = (
            {("samples_seed0_count4", 20): (folder / "samples_seed0_count4.png").read_bytes()} if seed == "0" else {}
        )
        assert media(run) == drawn | film | joined and len(drawn) == 6
    assert len(fresh.runs) == 2


@pytest.mark.slow
def test_what_a_stranger_keeps_there_may_not_run_code(fresh, tmp_path):
    send = "import sys, wandb; from pathlib import Path; from rl_lab.core import registry; sys.argv = ['x']\n" \
           "run = wandb.init(id='evil', project='p', settings=wandb.Settings(silent=True, console='off'))\n" \
           "registry.send(run, Path('theirs')); run.finish()"  # fmt: skip
    (theirs := tmp_path / "theirs").mkdir()
    config = "name: x\nseed: 0\nloop: {_target_: rl_lab.loops.training.train, env: {_target_: os.system, command: touch ran}}\n"
    for name in ("metrics.jsonl", "summary.json", "checkpoint.pt"):
        (theirs / name).write_text("{}")
    (theirs / "config.yaml").write_text(config)
    call(tmp_path, "-c", send, **fresh.env)
    told = call(tmp_path, "rl_lab", "evaluate", "run=wandb:me/p/evil", code=2, **fresh.env)
    assert "loop.env._target_=os.system is refused: a run folder may call only" in told and told.count("\n") == 1
    fresh.run.artifacts[0].manifest = fresh.run.artifacts[0].manifest.replace(b"summary.json", b"../../../x")
    told = call(tmp_path, "rl_lab", "evaluate", "run=wandb:me/p/evil:v0", code=2, **fresh.env)
    assert not (tmp_path / "ran").exists() and not list(tmp_path.rglob("x"))


@pytest.mark.slow
def test_a_refused_key_and_a_lost_network_are_said_in_a_line(server, planned, tmp_path):
    path = f"team/p/{planned[1].id}"
    command = "rl_lab", "render", f"run=wandb:{path}", "tracker=none"
    told = call(tmp_path, *command, code=2, **server.env | {"WANDB_API_KEY": "b" * 40})
    assert told == f"rl-lab: W&B at {server.url} refused the key; wandb login --relogin gives it another\n"
    told = call(tmp_path, *PLAN, code=2, **server.env | {"WANDB_API_KEY": "b" * 40})
    assert told.startswith("rl-lab: W&B refused the run: ") and "user is not logged in" in told
    assert told.endswith("; or run with tracker=none\n") and not (tmp_path / "run").exists()
    away = {"WANDB_BASE_URL": "http://127.0.0.1:1", "WANDB_API_KEY": "a" * 40}
    told = call(tmp_path, *command, code=2, **away)
    assert told == "rl-lab: W&B did not answer at http://127.0.0.1:1 within 10 s\n"
    (there,) = fetches(tmp_path, path, **server.env)
    assert fetches(tmp_path, path, **away) == [
        there,
        f"W&B did not answer at {away['WANDB_BASE_URL']} within 10 s; {there} was fetched before",
    ]


@pytest.mark.slow
def test_the_local_viewer_reads_every_row(tmp_path):
    call(tmp_path, "-c", LOOP, "50", WANDB_MODE="offline")
    told = call(tmp_path, "wandb", "leet", "inspect", "--json", *kept(tmp_path))
    records = [json.loads(line) for line in told.splitlines() if line.startswith("{")]
    rows = [record["history"]["item"] for record in records if record["type"] == "history"]
    assert [{k: v for k, v in row.items() if not k.startswith("_")} for row in rows] == lines(tmp_path / "run")
