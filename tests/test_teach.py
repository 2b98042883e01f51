"""People who say which of two clips is better: files that outlive a kill, a sitting that repeats, and what is refused."""

import json
import shutil
import time
import urllib.request
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from stated import stated

from rl_lab.__main__ import COMMANDS
from rl_lab.commands import teach as command
from rl_lab.commands.teach import SOON, Desk, Person, is_swapped
from rl_lab.core import checkpoint
from rl_lab.core.errors import UserError
from rl_lab.core.interrupts import Stopped
from rl_lab.core.launching import cli
from rl_lab.core.run import Run
from rl_lab.looking.browser import Browser
from rl_lab.looking.shown import Shown, Words, painted, painter
from rl_lab.types import Spec
from rl_lab.wanted.preferences import people
from rl_lab.wanted.preferences.logs import Log, read
from rl_lab.wanted.preferences.sittings import REVOKED, Sitting, Told, changes

BOOK = stated("env/russell_norvig", "mdp")()
WORLD = stated("env/base/tabular")(mdp=BOOK, time_limit=200)
PAID = (BOOK.probability * BOOK.reward).sum(-1)
SMALL = ["env=russell_norvig", "agent=a2c", "loop=preferences", "loop.labels=40", "loop.total_steps=3_200",
         "loop.recent=1_600", "loop.clip=10", "loop.eval_every=1_600", "loop.eval_episodes=8", "loop.log_every=320",
         "loop.predictor.input=state", "teacher=person", "teacher.wait=true", "tracker=none", "device=cpu"]  # fmt: skip


def rl_lab(*arguments: str) -> int:
    return cli.main("rl-lab", "rl", COMMANDS, list(arguments))


def rows(folder) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def judged(clips) -> str:
    """By the true sums."""
    state = WORLD.states(clips.obs)
    left, right = (
        sum(float(PAID[s, a]) for s, a in zip(state[i, :n], clips.action[i, :n], strict=True))
        for i, n in enumerate(clips.length.tolist())
    )
    return "same" if abs(left - right) < 1e-6 else "left" if left > right else "right"


class Anna:
    """Answers one question each time that the run waits."""

    def __init__(self, folder: Path, most: float = float("inf")):
        self.folder, self.left, self.person = folder, most, None

    def __call__(self, seconds: float) -> None:
        self.person = self.person or Person(self.folder, "anna")
        if not self.left:
            raise Stopped(15)
        self.left -= 1
        pair, of = self.person.question()
        self.person.say(pair, of, judged(self.person.sitting.clips(pair)), False, 1.0)

    def close(self) -> None:
        if self.person:
            self.person.log.close()


@pytest.fixture
def at(monkeypatch):
    """Who answers while a run waits."""
    found = []

    def sit(folder: Path, most: float = float("inf")) -> None:
        while found:
            found.pop().close()
        found.append(Anna(folder, most))
        monkeypatch.setattr(people.time, "sleep", found[0])

    yield sit
    for anna in found:
        anna.close()


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A run that a person taught."""
    folder, anna = tmp_path_factory.mktemp("taught") / "run", None
    anna = Anna(folder)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(people.time, "sleep", anna)
        assert rl_lab("train", *SMALL, f"hydra.run.dir={folder}") == 0
    anna.close()
    return folder


# -- files


def test_what_a_kill_tore_is_cut_off_and_the_rest_is_kept(tmp_path):
    log = Log(tmp_path / "x.jsonl")
    log.add({"a": 1})
    with pytest.raises(UserError, match="is being written by another process; stop that one first"):
        Log(tmp_path / "x.jsonl")
    log.close()
    with open(tmp_path / "x.jsonl", "ab") as file:
        file.write(b'{"a": 2')
    assert read(tmp_path / "x.jsonl") == [{"a": 1}], "it is being written"
    log = Log(tmp_path / "x.jsonl")
    log.add({"a": 3})
    log.close()
    assert (tmp_path / "x.jsonl").read_bytes() == b'{"a": 1}\n{"a": 3}\n'


def test_an_answer_is_on_disk_before_anything_else(tmp_path, monkeypatch):
    seen, log = [], Log(tmp_path / "x.jsonl")
    monkeypatch.setattr(
        "rl_lab.wanted.preferences.logs.os.fsync", lambda file: seen.append((tmp_path / "x.jsonl").read_bytes())
    )
    log.add({"a": 1})
    assert seen == [b'{"a": 1}\n']
    log.close()


def test_what_is_new():
    before = {("anna", 0): "left", ("anna", 1): "left", ("ben", 1): "same"}
    told = {**before, ("anna", 1): REVOKED, ("ben", 2): "right", ("anna", 2): REVOKED, ("anna", 9): "left"}
    assert changes(told, before, range(9)) == [Told("anna", 1, REVOKED), Told("ben", 2, "right")]


# -- a sitting


def test_a_run_learns_what_a_person_says(taught):
    told = read(taught / "preferences/answers-anna.jsonl")
    assert len(told) == 40 and {row["answer"] for row in told} == {"left", "right", "same"}
    steps = [row["step"] for row in read(taught / "preferences/used.jsonl")]
    assert steps[0] == 0 and steps == sorted(steps) and len(steps) > 3
    state = checkpoint.read(taught / "checkpoint.pt")["preferences"]
    clips = Sitting(taught).clips(3)
    at = state["sources"].index(("anna", 3))
    assert state["answers"]["answer"][at] == {"left": 1, "right": 0, "same": 0.5}[judged(clips)]
    assert torch.equal(state["answers"]["right/obs"][at], clips.obs[1])
    last = [row for row in rows(taught) if "preferences/labels" in row][-1]
    assert last["preferences/labels"] == 40 and last["preferences/agreement"] > 0.7


def test_a_sitting_repeats_bit_for_bit(taught, tmp_path):
    settings = [x for x in SMALL if not x.startswith("teacher")]
    given = ["teacher=recorded", f"teacher.run={taught}", f"hydra.run.dir={tmp_path / 'again'}"]
    assert rl_lab("train", *settings, *given) == 0
    assert rows(tmp_path / "again") == rows(taught)


@pytest.mark.slow
def test_killed_twice_and_taken_up_it_is_as_if_it_had_not_been(taught, tmp_path, at, monkeypatch):
    """First while the first answers are waited for, then between a checkpoint and answers that were used after it."""
    folder, pause = tmp_path / "run", Run.pause
    at(folder, 7)
    assert rl_lab("train", *SMALL, f"hydra.run.dir={folder}") == 143
    assert not (folder / "checkpoint.pt").exists()
    at(folder)

    def stopping(run, step, parts):
        pause(run, step, parts)
        if step == 640:
            run.save(step, parts)
        if step >= 1_600:
            raise Stopped(15)

    monkeypatch.setattr(Run, "pause", stopping)
    assert rl_lab("train", f"run={folder}") == 143
    before = [(path, path.read_bytes()) for path in sorted((folder / "preferences").glob("*.jsonl"))]
    assert read(folder / "preferences/used.jsonl")[-1]["step"] > 640
    monkeypatch.setattr(Run, "pause", pause)
    assert rl_lab("train", f"run={folder}") == 0
    assert rows(folder) == rows(taught)
    assert all(path.read_bytes().startswith(data) for path, data in before), "files are only ever written on to"


def test_what_is_taken_back_is_forgotten(taught, tmp_path):
    """Anna takes one back that was used, ben says the same of another, and both are learned from in one round."""
    model = checkpoint.read(taught / "checkpoint.pt")["preferences"]
    late = people_of(taught)
    late.load_state_dict(model)
    late.take([Told("anna", 3, REVOKED), Told("anna", 4, "right"), Told("ben", 5, "unsure"), Told("ben", 6, "left")])
    assert ("anna", 3) not in late.sources and ("ben", 5) not in late.sources and len(late.sources) == 40
    assert late.answers["answer"][late.sources.index(("anna", 4))] == 0
    assert late.sources[-2:] == [("anna", 4), ("ben", 6)] and len(late.answers["weight"]) == 40


def people_of(taught):
    from rl_lab.wanted.preferences.late import Late
    from rl_lab.wanted.preferences.people import Recorded

    cpu = torch.device("cpu")
    ensemble = stated("loop/preferences", "predictor", network=stated("agent/network/linear"), input="state")
    env = stated("env/base/tabular")(mdp=BOOK, time_limit=200)
    return Late(
        ensemble(env.spec, cpu, 0), Recorded(run=taught), env.spec, env.num_envs, cpu, 0, total_steps=3_200, labels=40,
        first=0.25, kept=3_000, clip=10, recent=1_600, select="random", candidates=10,
    )  # fmt: skip


def test_questions_that_were_all_withdrawn_were_put_all_the_same(taught):
    late = people_of(taught)
    assert not late.begun
    late.drawn, late.asked = 8, 0
    assert late.begun


def test_it_goes_on_while_nobody_answers(tmp_path, capfd, monkeypatch):
    """After its patience; it says where to go, and keeps no more questions open than it may, the older ones replaced."""
    folder = tmp_path / "run"
    settings = [x for x in SMALL if "wait" not in x]
    given = ["teacher.patience=1e-9", "teacher.open_pairs=12", "teacher.stale=1_000", f"hydra.run.dir={folder}"]
    assert rl_lab("train", *settings, *given) == 0
    said = capfd.readouterr().err
    assert "8 answers are waited for: rl-lab teach run=" in said and "nobody answered for 1e-09 minutes" in said
    asked, withdrawn = Sitting(folder).asked()
    assert withdrawn and max(withdrawn) < max(asked) and len({*asked} - withdrawn) <= 12
    assert not (folder / "preferences/used.jsonl").exists()


# -- the page


class Screen:
    """Keys as they are pressed: those of before at once, others when they are waited for."""

    def __init__(self, early: list[str], keys: list[str]):
        self.early, self.keys, self.shown = early, keys, []
        self.wait = lambda: time.sleep(0.002)

    def show(self, pictures) -> None:
        self.shown += pictures

    def key(self, seconds: float) -> str | None:
        if self.early or not seconds:
            return self.early.pop() if self.early else None
        self.wait()
        return self.keys.pop(0) if self.keys else "q"


@pytest.fixture
def desk(taught, tmp_path, monkeypatch):
    """At a run that waits, of which nothing is answered yet."""
    folder = tmp_path / "run"
    (folder / "preferences/clips").mkdir(parents=True)
    (folder / "summary.json").write_text('{"state": "running"}')
    for path in (taught / "preferences").rglob("*"):
        if path.is_file() and not path.name.startswith(("answers", "used")):
            (folder / path.relative_to(taught)).write_bytes(path.read_bytes())
    monkeypatch.setattr(command, "SOON", 0.0)
    person = Person(folder, "anna")
    yield lambda early, keys: Desk(person, WORLD, Screen(early, keys), 1_000.0)
    person.log.close()


def test_keys_answer_what_is_seen(desk):
    """Sides are swapped by chance, and answers back; what is taken back is asked again at once."""
    sitting = desk(["left", "up"], ["left", "right", "x", "space", "up", "backspace", "down", "backspace", "q"])
    assert sitting.sit() == "left"
    told = sitting.person.log.rows
    back = {"left": "right", "right": "left"}
    seen = [back.get(row["answer"], row["answer"]) if row["swapped"] else row["answer"] for row in told]
    assert [row["pair"] for row in told] == [0, 1, 2, 2, 2, 2]
    assert seen == ["left", "right", "same", REVOKED, "unsure", REVOKED]
    assert all(row["swapped"] == is_swapped("anna", row["pair"]) for row in told if row["answer"] != REVOKED)
    assert sitting.person.given == [0, 1]
    assert "2 answers of anna's: the left one 1, the right one 1, the same 0" in sitting.person.account()


def test_leaving_and_taking_back_need_nothing_to_be_seen(desk, monkeypatch):
    """Pressed while a pair was drawn, or before it was looked at."""
    monkeypatch.setattr(command, "SOON", 60.0)
    sitting = desk(["q", "backspace", "left"], [])
    for early in "backspace", "q":
        assert sitting.ask(*sitting.person.question()) == early
    sitting.screen.keys = ["left", "backspace"]
    assert sitting.ask(*sitting.person.question()) == "backspace" and not sitting.person.log.rows


def test_a_swapped_pair_is_shown_so(desk):
    sitting = desk([], [])
    clips = sitting.person.sitting.clips(0)
    plain, swapped = (sitting.shown(0, clips, way).clips for way in (False, True))
    assert plain[0] != plain[1] and plain == swapped[::-1]
    assert 0.4 < sum(is_swapped("anna", pair) for pair in range(400)) / 400 < 0.6


def test_a_key_of_the_pair_before_answers_nothing(desk, monkeypatch):
    """One each .08 s: the fourth comes more than .3 s after the pair was drawn."""
    sitting, clock = desk([], ["left"] * 20), [0.0]
    monkeypatch.setattr(command, "SOON", SOON)
    monkeypatch.setattr(command, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    sitting.screen.wait = lambda: clock.append(clock.pop() + 0.08)
    sitting.ask(*sitting.person.question())
    assert len(sitting.person.log.rows) == 1 and len(sitting.screen.keys) == 20 - 4


def test_a_clip_that_is_over_waits_under_a_veil_for_the_other():
    frames = [[Image.new("RGB", (380, 300), (20 * i, 0, 0)) for i in range(n)] for n in (3, 6)]
    shown = Shown(frames, [], [], Words("?", "", 0.0, ""))
    pages = [shown.draw(step, 0) for step in range(8)]
    left, right = ([page.getpixel((x, 100)) for page in pages] for x in (40, 460))
    assert [x[0] for x in right] == [0, 20, 40, 60, 80, 100, 100, 100]
    assert [x[0] for x in left[:3]] == [0, 20, 40] and all(x[1] > 150 for x in left[3:])


def test_who_left_the_map_is_seen_where_it_was_last():
    paint = painter(WORLD)
    sights = WORLD.all_observations()
    end = int(BOOK.terminal.nonzero()[0])
    frames = painted(torch.stack([sights[0], sights[end], sights[1]]), paint)
    assert len(frames) == 3 and frames[0] == frames[1] != frames[2]


def test_clips_of_each_kind_of_world_can_be_drawn():
    classic = stated("env/acrobot_tensor")(num_envs=2, camera=True, device="cpu")
    obs = classic.reset(0)
    picture = painter(classic, 100)(obs[1])
    assert max(picture.size) == 100
    assert Image.fromarray(classic.picture()[1]).resize(picture.size, Image.Resampling.LANCZOS) == picture
    pictures = SimpleNamespace(spec=Spec((4, 12, 10), torch.uint8, ("a",), 4))
    stack = torch.arange(0, 160, 40, dtype=torch.uint8)[:, None, None].expand(4, 12, 10)
    newest = painter(pictures, 100)(stack)
    assert newest.height == 100 and newest.getpixel((40, 50)) == (120, 120, 120)
    with pytest.raises(UserError, match="choose a gridworld, env=atari, or a world such as env=cartpole_tensor"):
        painter(stated("env/cartpole")(num_envs=1, device="cpu"))


def test_buttons_of_the_page_answer(desk, taught):
    """Over HTTP, as the page asks it."""
    sitting = desk([], [])
    with Browser("", lambda player: None, keys=command.LEGEND, across=True) as screen:
        sitting.screen, address = screen, f"http://127.0.0.1:{screen.port}/{screen.token}/"
        page = urllib.request.urlopen(address).read().decode()
        assert "<table class=across>" in page and ">cannot say</button>" in page
        thread = Thread(target=sitting.sit)
        thread.start()
        for count, key in enumerate(("←", "→", "↑", "↓", "Backspace", "q"), 1):
            assert urllib.request.urlopen(f"{address}picture/0").headers["Content-Type"] == "image/jpeg"
            urllib.request.urlopen(urllib.request.Request(f"{address}key", key.encode(), method="POST"))
            end = time.monotonic() + 10
            while len(sitting.person.log.rows) < count and key != "q":
                assert time.monotonic() < end
                time.sleep(0.01)
            time.sleep(0.05)
        thread.join(10)
    assert [row["pair"] for row in sitting.person.log.rows] == [0, 1, 2, 3, 3]


# -- bad input


def refused(capsys, *arguments: str) -> str:
    capsys.readouterr()
    assert rl_lab(*arguments) == 2
    return capsys.readouterr().err


def test_what_is_refused(taught, tmp_path, capsys):
    for who in ("a/b", ".hidden", "x" * 41):
        assert (
            f"who={who} must be a name of letters, digits, points and underscores, 40 at most and no point first"
            in (refused(capsys, "teach", f"run={taught}", f"who={who}"))
        )
    two = refused(capsys, "teach", str(taught), str(taught))
    assert f"teach one run at a time, and these are 2: name one of them, such as run={taught}" in two
    assert "which run? rl-lab teach run=<folder>" in refused(capsys, "teach")
    held = Person(taught, "ben")
    assert "answers-ben.jsonl is being written by another process" in refused(
        capsys, "teach", f"run={taught}", "who=ben"
    )
    held.log.close()
    oracle = [x for x in SMALL if not x.startswith("teacher")]
    assert rl_lab("train", *oracle, "loop.total_steps=64", f"hydra.run.dir={tmp_path / 'oracle'}") == 0
    assert "oracle asks nobody (yet)" in refused(capsys, "teach", f"run={tmp_path / 'oracle'}")
    (tmp_path / "oracle/checkpoint.pt").rename(tmp_path / "saved")
    assert "oracle asks nobody (yet)" in refused(capsys, "teach", f"run={tmp_path}")  # the run in it is meant
    (tmp_path / "saved").rename(tmp_path / "oracle/checkpoint.pt")
    both = "teach", f"run={tmp_path}", str(taught), "who=a/b"
    assert "who=a/b must be a name" in refused(capsys, *both)  # of the two, the one that asks
    train = ["train", *oracle, f"hydra.run.dir={tmp_path / 'x'}", "teacher=recorded"]
    assert "teacher.run=<its folder>" in refused(capsys, *train)
    assert "/nowhere is no folder" in refused(capsys, *train, "teacher.run=nowhere")
    assert "holds nothing that people said" in refused(capsys, *train, f"teacher.run={tmp_path / 'oracle'}")
    assert "asked about other clips than this run does" in refused(capsys, *train, f"teacher.run={taught}", "seed=1")
    given = [x for x in SMALL if not x.startswith("env=")]
    assert "clips of this world cannot be shown" in refused(capsys, "train", *given, "env=cartpole", "agent=a2c_mlp",
                                                            f"hydra.run.dir={tmp_path / 'y'}")  # fmt: skip
    assert not (tmp_path / "y").exists()


def test_damaged_files_are_named(taught, tmp_path, capsys):
    """Answers of another run, a line that is none, and clips of another length."""
    folder = tmp_path / "run"
    folder.mkdir()
    for path in taught.rglob("*"):
        if path.is_file():
            (folder / path.relative_to(taught)).parent.mkdir(parents=True, exist_ok=True)
            (folder / path.relative_to(taught)).write_bytes(path.read_bytes())
    place = folder / "preferences/answers-ben.jsonl"
    more = ["train", f"run={folder}", "loop.total_steps=3_840"]
    for text, words in (
        ('{"pair": 1, "of": "0000000000000000", "answer": "left"}\n', "line 1 answers a question of another run"),
        ('{"pair": 1, "of": \n', "line 1 is damaged; take it out, and the others stay"),
        ('{"pair": 999, "answer": "left"}\n', "line 1 answers a question of another run"),
        ('{"pair": 1, "of": "", "answer": "best"}\n', "line 1 is no answer; take it out"),
    ):
        place.write_text(text)
        assert words in refused(capsys, *more)
        assert words in refused(capsys, "teach", f"run={folder}", "who=ben")
    place.unlink()
    assert "clips of 10 steps, and loop.clip=5" in refused(capsys, *more, "loop.clip=5")
    (folder / "preferences/now.json").write_text("{")
    assert "now.json is damaged" in refused(capsys, "teach", f"run={folder}")


def test_a_line_can_be_taken_out_though_it_was_taken_back(taught, tmp_path):
    """As the message about a damaged line advises."""
    folder = tmp_path / "run"
    shutil.copytree(taught, folder)
    (folder / "preferences/answers-carl.jsonl").write_text(
        "".join(json.dumps({"pair": pair, "of": Sitting(folder).asked()[0][pair], "answer": answer}) + "\n"
                for pair, answer in ((1, "left"), (2, REVOKED)))
    )  # fmt: skip
    person = Person(folder, "carl")
    assert person.given == [1]
    assert person.account().startswith("1 answer of carl's: the left one 1")
    person.log.close()
