"""Several processes, one run: the same steps as one process with the joined batch, and one run folder."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import parallel_cases
import pytest
import torch
from parallel_cases import ALIKE, EQUAL
from stopping import equal

from rl_lab.core import checkpoint

QUICK = ["tracker=none", "device=cpu", "threads=1"]
A2C = ["experiment=a2c_four_rooms", *QUICK, "env.num_envs=4", "loop.total_steps=8_000", "loop.eval_every=4_000",
       "loop.eval_episodes=8", "checkpoint.every=0.1"]  # fmt: skip


class Ranks:
    """Two processes as torchrun would start them."""

    def __init__(self, *command: str, cwd: Path):
        self.store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        shared = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.store.port),
                               "TORCHELASTIC_USE_AGENT_STORE": "True"}  # fmt: skip
        self.processes = [
            subprocess.Popen([sys.executable, *command], cwd=cwd, stderr=subprocess.PIPE, text=True,
                             env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(2)
        ]  # fmt: skip

    def end(self) -> list[int]:
        self.errors = [process.communicate(timeout=120)[1] for process in self.processes]
        return [process.returncode for process in self.processes]

    def until_written(self, path: Path) -> None:
        """Anew, where it is there already."""
        before, deadline = path.exists() and path.stat().st_mtime_ns, time.monotonic() + 300
        while not path.exists() or path.stat().st_mtime_ns == before:
            assert time.monotonic() < deadline and self.processes[0].poll() is None
            time.sleep(0.02)


def rows(folder: Path) -> list[dict]:
    """Everything but the wall clock."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> tuple[Path, list[dict]]:
    """What each of two ranks found, and the folder they left it in."""
    folder = tmp_path_factory.mktemp("ranks")
    ranks = Ranks(parallel_cases.__file__, str(folder), cwd=folder)
    assert ranks.end() == [0, 0], ranks.errors
    return folder, [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", EQUAL)
def test_ten_updates_of_two_ranks_are_those_of_one_with_the_joined_batch(found, name):
    alone = EQUAL[name](parallel_cases.share)
    for rank in found[1]:
        assert rank[name].keys() == alone.keys()
        for key, x in alone.items():
            torch.testing.assert_close(rank[name][key], x, atol=5e-6, rtol=1e-5, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("name", [*EQUAL, *ALIKE])
def test_all_ranks_hold_the_same_parameters_to_the_last_bit(found, name):
    first, second = (rank[name] for rank in found[1])
    assert equal(first, second)


def test_a_run_has_parameters_in_common_and_envs_and_actions_of_each_rank(found):
    first, second = (rank["run"] for rank in found[1])
    own = {name for name in first if name.startswith("own")}
    assert len(own) == 2 and not any(torch.equal(first[name], second[name]) for name in own)
    assert all(torch.equal(first[name], second[name]) for name in first.keys() - own)


def test_a_run_counts_the_steps_of_all_and_is_written_once(found):
    folder = found[0] / "run"
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoint.pt",
        "config.yaml",
        "metrics.jsonl",
        "summary.json",
    ]
    steps = [(row["step"], "eval/return" in row) for row in rows(folder)]
    assert [step for step, judged in steps if judged] == [0, 600, 1_200]
    assert [step for step, judged in steps if not judged] == list(range(120, 1_201, 120))
    assert found[1][0]["run"]["steps"] == 1_200  # 200 times 3 envs in each of 2 ranks
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["processes"], summary["step"], summary["state"]) == (2, 1_200, "finished")


# -- on the command line


@pytest.mark.slow
def test_stopped_killed_and_resumed_equals_undisturbed(tmp_path):
    """SIGTERM to one rank alone stops both; then both are killed outright."""
    command = ["-m", "rl_lab", "train"]
    whole = Ranks(*command, *A2C, "hydra.run.dir=whole", cwd=tmp_path)
    assert whole.end() == [0, 0], whole.errors
    stopped = Ranks(*command, *A2C, "hydra.run.dir=cut", cwd=tmp_path)
    stopped.until_written(tmp_path / "cut/checkpoint.pt")
    stopped.processes[1].send_signal(signal.SIGTERM)
    assert stopped.end() == [143, 143], stopped.errors
    assert "stopped; rl-lab train run=cut under torchrun, again 2 times, resumes it" in stopped.errors[0]
    assert stopped.errors[1] == ""
    summary = json.loads((tmp_path / "cut/summary.json").read_text())
    assert summary["state"] == "stopped" and 0 < summary["step"] < 8_000
    killed = Ranks(*command, "run=cut", cwd=tmp_path)
    for _ in range(3):  # the first is of the step it began at
        killed.until_written(tmp_path / "cut/checkpoint.pt")
    for process in killed.processes:
        process.kill()
    assert killed.end() == [-signal.SIGKILL] * 2
    assert checkpoint.read(tmp_path / "cut/checkpoint.pt")["step"] > summary["step"]
    resumed = Ranks(*command, "run=cut", cwd=tmp_path)
    assert resumed.end() == [0, 0], resumed.errors
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    states = [checkpoint.read(tmp_path / name / "checkpoint.pt") for name in ("cut", "whole")]
    assert len(states[0]["ranks"]) == 1 and all(equal(states[0][k], states[1][k]) for k in ("agent", "env", "ranks"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "whole"]
    alone = subprocess.run([sys.executable, *command, "run=cut"], cwd=tmp_path, capture_output=True, text=True)
    assert alone.returncode == 2
    assert alone.stderr == ("rl-lab: this run was trained by 2 processes, not 1; resume it with torchrun and 2 "
                            "processes\n")  # fmt: skip


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
PIXELS = ["train", "experiment=gated_pixelcnn_digits", *QUICK, "loop.total_steps=10", "loop.pictured=4",
          "~model.optimizer.fused", "model.optimizer._target_=torch.optim.SGD"]  # fmt: skip


@pytest.mark.slow
def test_torchrun_fits_a_model_as_one_process_does_with_the_joined_batch(tmp_path):
    """From the command line to the checkpoint: the same images in the same order, in one folder of the usual name."""
    halves = subprocess.run([*TORCHRUN, "gen_lab", *PIXELS, "loop.batch_size=16"], cwd=tmp_path, capture_output=True)
    assert halves.returncode == 0, halves.stderr.decode()
    (folder,) = tmp_path.glob("runs/*/*")
    whole = [sys.executable, "-m", "gen_lab", *PIXELS, "loop.batch_size=32", "hydra.run.dir=whole"]
    assert subprocess.run(whole, cwd=tmp_path, capture_output=True).returncode == 0
    ours, theirs = (
        checkpoint.read(path / "checkpoint.pt")["model"]["averaged"] for path in (folder, tmp_path / "whole")
    )
    assert all((ours[name] - theirs[name]).abs().max() < 1e-6 for name in theirs)
    for row, other in zip(rows(folder), rows(tmp_path / "whole"), strict=True):
        assert row == pytest.approx(other, rel=1e-4)
    assert "processes: 2\n" in (folder / "config.yaml").read_text()


@pytest.mark.parametrize(("arguments", "words"), [
    pytest.param(["experiment=dqn_four_rooms"],
                 "rl-lab: DQN learns in one process, and torchrun started 2; start it without torchrun",
                 marks=pytest.mark.slow),
    pytest.param(["experiment=value_iteration_four_rooms"],
                 "rl-lab: this loop learns in one process, and torchrun started 2; start it without torchrun",
                 marks=pytest.mark.slow),
    (["-m", "experiment=a2c_four_rooms", "seed=0,1"],
     "rl-lab: torchrun is for one run in several processes, -m and study= are for several runs: leave out one of them"),
    pytest.param(["experiment=a2c_four_rooms", "agent.gama=1"],
                 "rl-lab: no setting 'agent.gama'; did you mean agent.gamma?", marks=pytest.mark.slow),
])  # fmt: skip
def test_what_cannot_be_is_said_once_and_leaves_nothing_behind(tmp_path, arguments, words):
    ranks = Ranks("-m", "rl_lab", "train", *arguments, *QUICK, cwd=tmp_path)
    assert sorted(ranks.end()) == [1, 2]
    assert "".join(ranks.errors) == words + "\n"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


FAILING = """
import sys
from rl_lab.__main__ import main
from rl_lab.agents.a2c import A2C
from rl_lab.core import distributed
update, A2C.calls = A2C.update, 0
def broken(self, transition):
    self.calls += 1
    if self.calls == 50 and distributed.rank() == 1:
        {how}
    return update(self, transition)
A2C.update = broken
sys.exit(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize(("how", "said"), [
    ("raise ZeroDivisionError('the fault of rank 1')", ["", "ZeroDivisionError: the fault of rank 1\n"]),
    pytest.param("import os; os._exit(9)",
                 ["another process of this run ended without an error message; this one cannot continue\n", ""],
                 marks=pytest.mark.slow),
])  # fmt: skip
def test_one_failing_rank_ends_all_and_its_error_is_told_once(tmp_path, how, said):
    (tmp_path / "failing.py").write_text(FAILING.format(how=how))
    ranks = Ranks("failing.py", "train", *A2C, "hydra.run.dir=run", cwd=tmp_path)
    assert ranks.end()[0] == 1
    begun = "agent=a2c env=four_rooms loop.total_steps=8_000: run\n"  # of the first rank, if it came so far
    errors = [error.removeprefix(begun) for error in ranks.errors]
    assert [error[-len(words) :] if words else error for error, words in zip(errors, said, strict=True)] == said
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert (summary["state"], summary["error"]) == ("failed", "another process of this run ended")
