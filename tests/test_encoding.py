"""Where the labs meet: recorded frames train an autoencoder, and an agent sees through it."""

import shutil
from pathlib import Path

import pytest
import torch
from stated import stated

from gen_lab import __main__ as gen
from gen_lab.trained.encoding import prepared
from gen_lab.trained.loading import load
from rl_lab import __main__ as rl
from rl_lab.core import checkpoint
from rl_lab.core.errors import UserError
from rl_lab.core.launching import cli
from rl_lab.core.recording import Recording
from rl_lab.types import Spec

Encoded = stated("agent/network/encoded")
ATARI = Spec((4, 84, 84), torch.uint8, tuple("abcdef"))


def run(lab, *given: object) -> int:
    prog, root = ("rl-lab", "rl") if lab is rl else ("gen-lab", "gen")
    return cli.main(prog, root, lab.COMMANDS, [*map(str, given), "device=cpu"])


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> tuple[Path, Path]:
    """A recording of two games of Pong, and an autoencoder of its frames."""
    recording, trained = (tmp_path_factory.mktemp("labs") / name for name in ("recording", "trained"))
    assert run(rl, "record", "env=atari", "env.game=pong", "env.num_envs=2", "episodes=2", f"out={recording}") == 0
    train = "train", "data=recorded", f"data.path={recording}", "data.held_out=0.5", "data.size=28", "tracker=none"
    model = "model=autoencoder", "model.latents=5", "loop.total_steps=3", "loop.batch_size=8", "loop.pictured=0"
    assert run(gen, *train, *model, f"hydra.run.dir={trained}") == 0
    return recording, trained


def test_an_agent_shows_its_encoder_what_the_encoder_was_trained_on(seen):
    recording, trained = seen
    data = load(trained, "cpu").data
    (episode,) = Recording(recording).episodes(Recording(recording).split(0.5)[1])
    frames = torch.from_numpy(episode.obs)
    frames = frames if frames.dim() == 3 else frames[:, -1]
    assert torch.equal(prepared(frames.unsqueeze(1), 28, 8), data.test)


def test_features_are_the_codes_of_each_frame_of_the_stack(seen):
    trained = seen[1]
    fitted = load(trained, "cpu")
    obs = torch.randint(256, (3, *ATARI.obs_shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features = Encoded(ATARI, run=str(trained), hidden=[])(obs)
    assert features.shape == (3, 20)
    expected = torch.stack([fitted.model.code(prepared(obs[:, i : i + 1], 28, 8)) for i in range(4)], 1)
    torch.testing.assert_close(features, expected.flatten(1))
    eyes = Encoded(ATARI, run=str(trained), hidden=[7, 3])
    first, second = eyes.dense[0], eyes.dense[2]
    torch.testing.assert_close(eyes(obs), second(first(features).relu()).relu())


@pytest.mark.parametrize("frozen", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_an_agent_learns_behind_it(seen, tmp_path, frozen):
    trained = seen[1]
    given = [
        "experiment=dqn_pong", "agent/network=encoded", f"agent.network.run={trained}", f"agent.network.frozen={frozen}",
        "env.num_envs=2", "agent.replay.capacity=500", "agent.learning_starts=64", "loop.total_steps=96",
        "loop.eval_every=96", "loop.eval_episodes=1", "tracker=none", f"hydra.run.dir={tmp_path}",
    ]  # fmt: skip
    assert run(rl, "train", *given) == 0
    learned = checkpoint.read(tmp_path / "checkpoint.pt")["agent"]["online"]
    kept = {k.partition("encoder.")[2]: x for k, x in learned.items() if "encoder." in k}
    begun = load(trained, "cpu").model.encoder.state_dict()
    assert kept.keys() == begun.keys()
    assert all(torch.equal(kept[k], begun[k]) for k in begun) is frozen


@pytest.mark.slow
def test_it_is_found_from_anywhere_and_where_it_has_gone(seen, tmp_path, monkeypatch, capsys):
    home, away = tmp_path / "home", tmp_path / "away"
    away.mkdir()
    shutil.copytree(seen[1], home / "runs/eyes/mine")
    monkeypatch.chdir(home)
    given = [
        "experiment=dqn_pong", "agent/network=encoded", "agent.network.run=runs/eyes/*", "env.num_envs=2",
        "agent.replay.capacity=500", "agent.learning_starts=64", "loop.total_steps=2", "loop.eval_every=null",
        "loop.eval_episodes=1", "env.max_frames=80", "tracker=none",
    ]  # fmt: skip
    assert run(rl, "train", *given, "hydra.run.dir=agent") == 0
    assert f"run: {home}/runs/eyes/mine\n" in Path("agent/config.yaml").read_text()
    monkeypatch.chdir(away)
    evaluated = "evaluate", f"run={home}/agent", "episodes=1"
    assert run(rl, *evaluated) == 0
    (home / "runs/eyes/mine").rename(away / "mine")
    capsys.readouterr()
    assert run(rl, *evaluated) == 2
    line = (
        f"rl-lab: agent.network.run={home}/runs/eyes/mine is not a run folder; type "
        "agent.network.run=<the autoencoder's run folder>, where it is now\n"
    )
    assert capsys.readouterr().err == line
    assert run(rl, *evaluated, "agent.network.run=mine") == 0
    assert cli.main("rl-lab", "rl", rl.COMMANDS, ["export", evaluated[1], "agent.network.run=mine", "to=x.pt2"]) == 0
    shutil.copytree("mine", "nine")
    capsys.readouterr()
    assert run(rl, *evaluated, "agent.network.run='?ine'") == 2
    assert "agent.network.run=?ine fits 2 places; name one of them, such as" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["a2c_pong", "ppo_pong"])
def test_so_do_actors(seen, tmp_path, experiment):
    given = [
        f"experiment={experiment}", "agent/network=encoded", f"agent.network.run={seen[1]}",
        "env.num_envs=2", "loop.total_steps=256", "loop.eval_every=256", "loop.eval_episodes=1", "tracker=none",
        f"hydra.run.dir={tmp_path}",
    ]  # fmt: skip
    assert run(rl, "train", *given) == 0
    assert any("encoder." in name for name in checkpoint.read(tmp_path / "checkpoint.pt")["agent"]["network"])


def test_what_cannot_be_seen_through(seen, tmp_path):
    trained = seen[1]
    with pytest.raises(UserError, match="trained on images of 1 x 28 x 28, and the environment shows torch.float32"):
        Encoded(Spec((4,), torch.float32, ("a", "b")), run=str(trained))
    with pytest.raises(UserError, match="nowhere"):
        Encoded(ATARI, run="nowhere")
    given = "train", "experiment=independent_digits", "loop.total_steps=1", "loop.pictured=0", "tracker=none"
    assert run(gen, *given, f"hydra.run.dir={tmp_path}") == 0
    with pytest.raises(UserError, match="is no autoencoder that goes without labels"):
        Encoded(ATARI, run=str(tmp_path))
