"""Films: the right picture, at its true speed, with the numbers of the moment."""

import itertools
import json
import resource
import shutil
import signal
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from stated import stated

from rl_lab.__main__ import COMMANDS
from rl_lab.agents.planned import Planned
from rl_lab.agents.random import Random
from rl_lab.commands.render import distinctions, shrunk, still, strip
from rl_lab.core.errors import UserError
from rl_lab.core.launching import cli
from rl_lab.looking import panels, pictures, trees
from rl_lab.looking.films import write, write_gif
from rl_lab.loops.judging import Judge
from rl_lab.playing import scenes
from rl_lab.playing.player import Player, load
from rl_lab.playing.scenes import at_rate, board_of, film, limits_of, on_one_scale, play, together

Atari = stated("env/atari")
Gym = stated("env/gym")
MDPEnv = stated("env/base/tabular")
gridworld = stated("env/base/gridworld", "mdp")
value_iteration = stated("planner/value_iteration")

render = stated("command/rl/render")

BOOK = {"map": "...G\n.#.X\nS...", "living_reward": -0.04, "noise": 0.2, "convention": "state"}
UP, RIGHT, DOWN, LEFT = range(4)


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Tiny runs of a table, a plan, a game and a Gymnasium environment."""
    root = tmp_path_factory.mktemp("runs")
    recipes = {
        "dqn": ["experiment=dqn_four_rooms", "loop.total_steps=2000", "agent.learning_starts=64"],
        "plan": ["experiment=value_iteration_russell_norvig", "loop.film=false"],
        "dear": ["experiment=value_iteration_russell_norvig", "env.mdp.living_reward=-2", "loop.film=false"],
        "pong": ["experiment=a2c_pong", "agent=random", "env.num_envs=1", "env.max_frames=160", "loop.total_steps=4"],
        "cartpole": ["experiment=dqn_cartpole", "loop.total_steps=8"],
    }
    for name, recipe in recipes.items():
        common = ["tracker=none", "device=cpu", "loop.eval_episodes=1", f"hydra.run.dir={root / name}"]
        assert cli.main("rl-lab", "rl", COMMANDS, ["train", *recipe, *common]) == 0
    return root


@pytest.fixture
def planner() -> Player:
    env = MDPEnv(gridworld(**BOOK), 1, time_limit=200)
    *_, plan = value_iteration(env.mdp, gamma=1.0)
    return Player("plan", "plan", Path("nowhere"), env, Planned(plan.q, plan.policy, env.states), 38, "sweeps")


def video(path: Path) -> tuple[float, list[np.ndarray]]:
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        return float(stream.average_rate), [frame.to_ndarray(format="rgb24") for frame in file.decode(stream)]


# -- pictures


def averaging(count: int, size: int) -> torch.Tensor:
    """[size, count]: the mean over `size` equal stretches of `count` pixels, parts of pixels counted as parts."""
    edges, pixels = torch.linspace(0, count, size + 1, dtype=torch.float64), torch.arange(count)
    overlap = torch.minimum(edges[1:, None], pixels + 1) - torch.maximum(edges[:-1, None], pixels)
    return overlap.clamp(min=0) * size / count


@pytest.mark.parametrize("game", ["pong", "breakout"])
def test_the_twin_shows_what_the_agent_sees(game):
    """Sticky actions, idle starts, resets: the colour picture, turned grey and shrunk, is the newest frame.

    But for a few pixels: both are the maximum of two frames, here of each colour, there of the greys.
    """
    env = Atari(game, 2, sticky=0.25, max_frames=200, camera=True, num_threads=1)
    obs, rows, columns = env.reset(4), averaging(210, 84), averaging(160, 84)
    rng, resets, luminance = torch.Generator().manual_seed(0), 0, torch.tensor([0.299, 0.587, 0.114]).double()
    for _ in range(100):
        grey = torch.from_numpy(env.picture()).double() @ luminance
        off = (rows @ grey @ columns.T - obs[:, -1]).abs()
        assert (off > 1.5).sum((1, 2)).max() < 40 and off.max() < 48  # of 7,056 pixels
        step = env.step(torch.randint(env.spec.num_actions, (2,), generator=rng))
        obs, resets = step.obs, resets + int(step.last.sum())
    assert resets >= 2
    env.close()


# -- films


def test_an_episode_is_worth_what_evaluate_says(planner):
    """The same seed, one environment: each film is the episode that is counted."""
    for seed in range(5):
        moments = list(play(planner, episodes=3, seed=seed, max_steps=2000))
        ends = [m for m in moments if m.ending]
        figures = Judge(planner.env, 3, seed)(planner.agent)
        assert [m.episode for m in ends] == [1, 2, 3] and {m.ending for m in ends} == {"terminated"}
        assert sum(m.reward for m in ends) / 3 == pytest.approx(figures["eval/return"].item(), abs=1e-6)
        assert sum(m.step for m in ends) / 3 == pytest.approx(figures["eval/length"].item())
        assert len(moments) == sum(m.step + 1 for m in ends)


def test_the_chosen_action_moves_the_agent_that_is_drawn(planner):
    """Without slips, the disc of the next picture stands where the arrow pointed, of the last one on the goal."""
    env = MDPEnv(gridworld(**BOOK | {"noise": 0.0, "convention": "transition"}), 1, time_limit=200)
    moments = list(play(planner._replace(env=env), episodes=1, seed=0, max_steps=2000))
    board = pictures.Board(env.mdp.layout, env.mdp.actions, np.zeros(11), np.zeros((11, 4)))
    for moment, (y, x) in zip(moments, [(2, 0), (1, 0), (0, 0), (0, 1), (0, 2), (0, 3)], strict=True):
        assert moment.picture.getpixel(board.centre(y, x)) == rgb(pictures.AGENT)
    assert [m.action for m in moments[:5]] == [UP, UP, RIGHT, RIGHT, RIGHT]


def test_how_an_episode_ends(planner):
    env = MDPEnv(gridworld(**BOOK), 1, time_limit=2)
    for player, ending in ((planner._replace(env=env), "time limit"), (planner, "cut at 3")):
        moments = list(play(player, episodes=2, seed=0, max_steps=3))
        assert [m.ending for m in moments if m.ending] == [ending] * 2
        first, second = (m.picture for m in moments if m.step == 0)
        assert first.tobytes() == second.tobytes()  # a new episode, from the start


def test_the_last_picture_is_never_of_the_next_episode(runs):
    """Atari and CartPole have begun anew when an episode ends; the film stands on what was there before."""
    player = load(runs / "cartpole", max_envs=1, device="cpu", camera=True)
    moments = list(play(player, episodes=2, seed=0, max_steps=2000))
    ends = [i for i, m in enumerate(moments) if m.ending]
    assert len(ends) == 2 and all(moments[i].picture is moments[i - 1].picture for i in ends)
    player.env.close()


@pytest.mark.slow
def test_pong_at_its_true_speed(runs, tmp_path):
    path = render([runs / "pong"], episodes=2, out=str(tmp_path / "film.mp4"), device="cpu")
    fps, frames = video(path)
    assert fps == 15.0
    assert len(frames) == 2 * (40 + round(0.7 * 15))  # 160 frames, 4 a step; then the last picture stands
    height, width, _ = frames[0].shape
    assert height % 2 == width % 2 == 0 and height >= 422 + 56
    assert duration(path.with_suffix(".gif")) == pytest.approx(len(frames) / 15, abs=0.011)
    assert json.loads((runs / "pong/summary.json").read_text())["state"] == "finished"


def duration(path: Path) -> float:
    """Of a gif, in seconds."""
    total = 0
    with Image.open(path) as gif:
        for i in range(gif.n_frames):
            gif.seek(i)
            total += gif.info["duration"]
    return total / 1000


def test_a_film_lies_in_the_run_folder(runs, capsys, monkeypatch):
    monkeypatch.chdir(runs)
    arguments = ["render", "run=plan", "episodes=1", "gif=false", "tracker=none", "device=cpu"]
    assert cli.main("rl-lab", "rl", COMMANDS, arguments) == 0
    path = capsys.readouterr().out.strip()
    assert path == "plan/videos/value_iteration_russell_norvig_step38.mp4"
    assert [p.name for p in Path("plan/videos").iterdir()] == [Path(path).name]  # no gif, nothing half-written
    fps, frames = video(Path(path))
    assert fps == 6.0
    assert np.abs(frames[0][56 + 30, 16 + 30].astype(int) - np.array(pictures.VIRIDIS[6])).max() < 60  # it is the board


def test_a_still_shows_what_tells_runs_apart(runs, tmp_path, capsys, monkeypatch):
    """Value maps beside each other, without a walker, under the setting that differs."""
    monkeypatch.chdir(tmp_path)
    arguments = ["render", f"run={runs / 'plan'}", f"run={runs / 'dear'}", "out=tour.png", "tracker=none", "device=cpu"]
    assert cli.main("rl-lab", "rl", COMMANDS, arguments) == 0
    assert capsys.readouterr().out == "tour.png\n" and [p.name for p in tmp_path.iterdir()] == ["tour.png"]
    picture = np.array(Image.open("tour.png").convert("RGB"))
    page = 4 * 80 + 6 + 2 * 16
    assert picture.shape[1] == 2 * page
    assert not (picture == rgb(panels.AGENT)).all(-1).any()
    assert (picture[:34, :page] != picture[:34, page:]).any()  # their titles
    x, y = 16 + 3 + 3 * 80, 56 + 3 + 2 * 80  # cell (2, 3), below the pit: the worst place but where life is dear
    assert (picture[y + 4, x + 4] == pictures.VIRIDIS[0]).all()
    assert distinctions([runs / "plan", runs / "dear"]) == ["env.mdp.living_reward=-0.04", "env.mdp.living_reward=-2"]
    assert distinctions([runs / "plan"]) == distinctions([runs / "plan"] * 2)[:1] == [""]


def test_a_still_of_any_world(runs, tmp_path):
    """Of a game moments of it; of a table's gridworld what it learned; a name where nothing tells runs apart."""
    path = render([runs / "pong", runs / "dqn"], out=str(tmp_path / "still.png"), device="cpu")
    with Image.open(path) as still:
        assert still.width == 4 * (240 + 12) + 32
    assert distinctions([runs / "pong", runs / "dqn"]) == ["", ""]


def test_a_still_of_cartpole_is_a_strip_of_moments(runs):
    """The first and the last, and those between evenly apart; only these are drawn."""
    player = load(runs / "cartpole", max_envs=1, device="cpu", camera=True)
    played = ([*play(player, episodes=1, seed=seed, max_steps=2_000, drawn=())] for seed in range(50))
    seed, moments = next((seed, found) for seed, found in enumerate(played) if found[-1].step > 8)
    drawn = []
    draw = player.env.picture
    player.env.picture = lambda: drawn.append(1) or draw()
    picture = still([player], seed)
    assert len(drawn) == 8 and moments[-1].picture.size == (2, 2)
    assert picture.size == (4 * 252 + 32, 2 * (round(402 * 240 / 602) + 30) + 72)
    first, last = (np.asarray(picture)[56 + y : 56 + y + 150, 16 + x : 16 + x + 240] for x, y in ((0, 0), (756, 190)))
    player.env.reset(seed)
    top = np.asarray(shrunk(panels.enlarged(draw()[0])))[:150]
    assert (first == top).all() and (last != top).any()
    player.env.close()


def test_a_still_of_who_draws_its_actions_shows_its_episode_to_the_end(runs, monkeypatch):
    player = load(runs / "cartpole", max_envs=1, device="cpu", camera=True)
    drawing = lambda: player._replace(agent=Random(player.env.spec, player.env.device, 0))
    *_, end = play(drawing(), episodes=1, seed=0, max_steps=2_000, drawn=())
    said = []
    monkeypatch.setattr(panels, "captioned", lambda picture, step, reward: said.append(step) or picture)
    strip(drawing(), 0, None, 2_000, 4)
    assert len(said) == 4 and said[-1] == f"step {end.step}"
    player.env.close()


def test_runs_of_one_world_share_a_scale_and_of_several_say_that_they_do_not(runs):
    load_all = lambda *names: on_one_scale([load(runs / n, max_envs=1, device="cpu") for n in names])
    one, other = load_all("plan", "plan")
    assert one.scale == other.scale == board_of(one).limits and one.scale[0] < one.scale[1]
    plan, dear = players = load_all("plan", "dear")
    assert plan.scale is dear.scale is None
    noted, bare = still(players, 0), still([one, other], 0)
    assert noted.height - bare.height == 26


def test_the_bars_of_runs_in_one_world_share_an_axis_too(runs, monkeypatch):
    found = iter([(0.0, 1.0), (-1.0, 3.0)] * 2)
    monkeypatch.setattr(scenes, "limits_of", lambda player, **_: next(found))
    for names, expected in ((("plan", "plan"), {(-1.0, 3.0)}), (("plan", "dear"), {(0.0, 1.0), (-1.0, 3.0)})):
        axes, players = [], [load(runs / n, max_envs=1, device="cpu") for n in names]
        monkeypatch.setattr(scenes, "Page", lambda player, limits, abreast, axes=axes: axes.append(limits) or str)
        monkeypatch.setattr(scenes, "play", lambda player, **_: iter(()))
        for show in scenes.films(players, [6.0, 6.0], episodes=1, seed=0, max_steps=3):
            list(show)
        assert {*axes} == expected


def test_cells_that_were_never_visited_are_pale_and_count_in_no_scale(runs, tmp_path):
    player = load(runs / "dqn", max_envs=1, device="cpu")
    saved = torch.load(runs / "dqn/checkpoint.pt", weights_only=True)["env"]["visited"]
    assert torch.equal(player.visited, saved) and 0 < saved.sum() < len(saved)
    env, known = player.env, saved.numpy()
    value = player.view(env.all_observations()).value.numpy()
    board = board_of(player)
    assert board.limits == (value[known].min(), value[known].max())
    pale = int(np.flatnonzero(~known[board.grid.free])[0])
    (x, y), colour = board.centre(*board.grid.places[pale]), rgb(pictures.FLOOR)
    assert (
        board.picture.getpixel((x, y)) == colour
        and board.picture.height > board_of(player._replace(visited=None)).picture.height
    )
    assert load(runs / "plan", max_envs=1, device="cpu").visited is None  # a planner has walked nowhere
    other = shutil.copytree(runs / "dqn", tmp_path / "dqn") / "checkpoint.pt"
    state = torch.load(other, weights_only=True)
    torch.save(state | {"env": {**state["env"], "visited": torch.ones(len(saved) + 1, dtype=torch.bool)}}, other)
    assert load(other.parent, max_envs=1, device="cpu").visited is None  # of a world of other states


def test_the_bars_keep_one_axis_over_a_film(runs):
    player = load(runs / "dqn", max_envs=1, device="cpu")
    how = dict(episodes=2, seed=0, max_steps=12)
    bars = [moment.view.bars for moment in play(player, **how)]
    low, high = limits_of(player, **how)
    assert (low, high) == (min(float(x.min()) for x in bars), max(float(x.max()) for x in bars))
    axes = []
    with pytest.MonkeyPatch.context() as patch:
        draw = panels.Panel.draw
        patch.setattr(panels.Panel, "draw", lambda panel, *a: axes.append((panel.low, panel.high)) or draw(panel, *a))
        list(film(player, 6.0, **how))
    assert {*axes} == {(low, high)} and len(axes) == len(bars)


def test_a_still_that_cannot_be_written(runs, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"^cannot write to {tmp_path}/file: File exists; make room or choose another"):
        render([runs / "plan"], out=str(tmp_path / "file/x.png"), device="cpu")


def test_side_by_side(runs, tmp_path):
    """Three worlds of three speeds: as wide as all, as long as the longest, the slow ones at their own speed."""
    names = "cartpole", "pong", "plan"
    path = render([runs / n for n in names], episodes=1, out=str(tmp_path / "film"), gif=False, device="cpu")
    fps, frames = video(path)
    widths, seconds = [], []
    for name, rate in zip(names, (50, 15, 6), strict=True):
        player = load(runs / name, max_envs=1, device="cpu", camera=True)
        alone = list(film(player, rate, episodes=1, seed=0, max_steps=2000, abreast=True))
        widths.append(alone[0].width)
        seconds.append(len(alone) / rate)
        player.env.close()
    assert path.suffix == ".mp4" and fps == 50.0
    assert abs(frames[0].shape[1] - sum(widths)) <= 1
    assert len(frames) == pytest.approx(50 * max(seconds), abs=1)


def test_rates():
    assert "".join(at_rate("abc", 15, 15)) == "abc"
    assert "".join(at_rate("abc", 15, 45)) == "aaabbbccc"
    assert "".join(at_rate("abcdef", 20, 50)) == "aaabbcccddeeeff"
    for rate, fps in itertools.product((6, 7.5, 15, 30), (30, 50, 60)):
        shown = list(at_rate(range(100), rate, fps))
        assert all(abs(shown.index(i) / fps - i / rate) < 1 / fps + 1e-9 for i in range(100))


def test_a_shorter_film_waits():
    films = [[Image.new("RGB", (4, 4), c) for c in colours] for colours in (["red", "lime", "blue"], ["red"])]
    frames = list(together([iter(f) for f in films]))
    assert [f.getpixel((6, 2)) for f in frames] == [(255, 0, 0)] * 3
    assert [f.getpixel((2, 2)) for f in frames] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


def test_odd_sizes_are_padded_not_scaled(tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(256, size=(33, 41, 3), dtype=np.uint8))
    page = panels.side_by_side([picture])
    assert page.size == (42, 34) and np.array_equal(np.array(page)[:33, :41], np.array(picture))
    write(tmp_path / "x.mp4", [page] * 3, 10, gif=False)
    assert [f.shape for f in video(tmp_path / "x.mp4")[1]] == [(34, 42, 3)] * 3


@pytest.mark.parametrize("fps", [6, 15, 16.7, 20])
def test_a_gif_keeps_time(tmp_path, fps):
    stills = [Image.new("P", (4, 4), i) for i in range(50)]
    for each in stills:
        each.putpalette([i for c in range(256) for i in (c, c, c)])
    write_gif(tmp_path / "x.gif", stills, fps)
    assert duration(tmp_path / "x.gif") == pytest.approx(50 / fps, abs=0.011)


def test_a_gif_keeps_its_colours():
    frames = [Image.new("RGB", (8, 8), c) for c in ("#D55E00", "#D55E00", "#009E73", "#123456")]
    before = None
    for frame in frames:
        before = panels.indexed(frame, before)
        off = np.abs(np.array(before.convert("RGB")).astype(int) - np.array(frame)).max()
        assert off <= 32


def test_a_gif_keeps_shades_near_white():
    """What a bar is drawn in, pale grey on white: in the first picture, and where it comes later."""
    bare = Image.new("RGB", (300, 200), panels.PAPER)
    for row in range(60):  # many colours, as letters and heat have them
        bare.paste((255 - 4 * row, 3 * row, 100 + 2 * row), (row, 190, row + 1, 200))
    barred = bare.copy()
    barred.paste(panels.GROOVE, (150, 50, 280, 90))
    for frames in ([bare, barred, bare], [barred]):
        before = None
        for frame in frames:
            before = panels.indexed(frame, before)
            off = np.abs(np.array(before.convert("RGB")).astype(int) - np.array(frame)).max(-1)
            assert off[:190].max() <= 2


def test_a_full_disk_is_one_line_and_no_litter(runs, tmp_path):
    """A limit on the size of files stands for a full disk."""
    old, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, old[1]))
    try:
        with pytest.raises(UserError) as error:
            render([runs / "plan"], episodes=1, out=str(tmp_path / "film.mp4"), gif=False, device="cpu")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert str(error.value) == f"cannot write to {tmp_path}: File too large; make room or choose another place (out=)"
    assert not list(tmp_path.iterdir())


def test_a_film_without_frames_leaves_no_folder(tmp_path):
    def refused():
        raise UserError("no picture")
        yield

    with pytest.raises(UserError, match="^no picture$"):
        write(tmp_path / "videos/a.mp4", refused(), 6, gif=False)
    assert not list(tmp_path.iterdir())


def test_mistakes(runs, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    lines = {
        (): "which run? rl-lab render run=<folder>",
        (f"run={tmp_path}",): f"{tmp_path} is not a run folder: it has no config.yaml",
        (f"run={runs / 'plan'}", "episodes=0"): "episodes=0 must be at least 1",
        (f"run={runs / 'plan'}", "episode=1"): "no setting 'episode'; did you mean episodes?",
        (f"run={runs / 'plan'}", "out=a.avi"):
            "out=a.avi must be a film (.mp4, with a .gif beside it), a still (.png) or an existing folder",
        (f"run={runs / 'plan'}", f"out={tmp_path / 'file/x.mp4'}"):
            f"cannot write to {tmp_path / 'file'}: File exists; make room or choose another place (out=)",
    }  # fmt: skip
    for arguments, line in lines.items():
        assert cli.main("rl-lab", "rl", COMMANDS, ["render", *arguments, "tracker=none", "device=cpu"]) == 2
        assert capsys.readouterr().err == f"rl-lab: {line}\n"


def test_a_world_without_a_picture(planner):
    env = MDPEnv(gridworld(**BOOK)._replace(layout=None), 1, time_limit=200)
    with pytest.raises(UserError, match="^nowhere: its environment has no picture to film$"):
        next(play(planner._replace(env=env), episodes=1, seed=0, max_steps=9))


@pytest.mark.parametrize(("name", "own"), [("pong", 15.0), ("cartpole", 50.0), ("plan", 6.0)])
def test_films_run_as_fast_as_one_asks_whatever_the_world(runs, tmp_path, name, own):
    for asked, expected in ((None, own), (10.0, 10.0)):
        path = render([runs / name], episodes=1, max_steps=3, fps=asked, gif=False, out=str(tmp_path / f"{asked}.mp4"))
        assert video(path)[0] == expected


@pytest.mark.parametrize("fps", ["0.01", "1e9", "0", "-1"])
def test_a_speed_that_no_film_has(runs, capsys, fps):
    arguments = ["render", f"run={runs / 'plan'}", f"fps={fps}", "tracker=none", "device=cpu"]
    assert cli.main("rl-lab", "rl", COMMANDS, arguments) == 2
    assert capsys.readouterr().err.endswith("must be between 0.1 and 240\n")


def test_a_picture_that_is_wide_or_flat_is_not_enlarged_beyond_measure():
    assert panels.enlarged(np.zeros((1, 900, 3), np.uint8)).size == (902, 3)
    assert panels.enlarged(np.zeros((210, 160, 3), np.uint8)).size == (322, 422)
    assert panels.enlarged(np.zeros((900, 1, 3), np.uint8)).size == (3, 902)


def test_a_gymnasium_camera():
    env = Gym("CartPole-v1", 1, camera=True)
    env.reset(0)
    assert env.picture().shape == (1, 400, 600, 3) and env.frames_per_second == 50
    env.close()


@pytest.mark.slow
def test_a_plan_stands_beside_what_it_is_about(tmp_path):
    """Value prediction on a maze: the way on the map, and the tree between picture and figures."""
    arguments = ["experiment=vpn3_collect_small", "tracker=none", "device=cpu", "env.num_envs=8",
                 "agent.random_steps=100", "agent.branch_depth=3", "loop.total_steps=200", "loop.eval_every=200",
                 "loop.eval_episodes=1", "loop.eval_env.num_envs=1"]  # fmt: skip
    assert cli.main("rl-lab", "rl", COMMANDS, ["train", *arguments, f"hydra.run.dir={tmp_path}"]) == 0
    player = load(tmp_path, max_envs=1, device="cpu")
    moments = list(play(player, episodes=12, seed=0, max_steps=9))
    assert [level.q.shape[1] * level.q.shape[2] for level in moments[0].plan] == [4, 16, 64]
    beside = next(film(player, 5.0, episodes=1, seed=0, max_steps=9))
    tree = trees.tree(moments[0].plan, player.env.spec.actions, moments[0].picture.height)
    player.agent.plan = lambda obs: None
    plain = list(play(player, episodes=12, seed=0, max_steps=9))
    assert [m.action for m in moments] == [m.action for m in plain]
    ways = [np.asarray(m.picture) != np.asarray(p.picture) for m, p in zip(moments, plain, strict=True)]
    assert any(way.any() for way in ways) and all(way.mean() < 0.2 for way in ways)
    assert beside.width == moments[0].picture.width + tree.width + 32  # the panel lies below the picture
