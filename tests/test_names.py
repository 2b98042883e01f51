"""A run is named by what was composed."""

from pathlib import Path

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from gen_lab.__main__ import COMMANDS as GEN
from rl_lab.__main__ import COMMANDS
from rl_lab.core.launching import cli, composition
from rl_lab.core.launching.composition import snake
from rl_lab.playing.player import titled

NAMES = {
    "": "dqn_four_rooms",
    "agent=ppo": "ppo_four_rooms",
    "planner=policy_iteration env=windy": "policy_iteration_windy",
    "experiment=dqn_four_rooms": "dqn_four_rooms",
    "experiment=dqn_four_rooms seed=3 agent.gamma=0.9": "dqn_four_rooms",
    "experiment=dqn_four_rooms agent=ppo": "ppo_four_rooms",
    "experiment=preferences_four_rooms": "preferences_four_rooms",
    "experiment=preferences_four_rooms agent=ppo": "ppo_four_rooms_preferences",
    "experiment=dqn_four_rooms env=windy": "dqn_windy",
    "experiment=value_iteration_four_rooms planner=policy_iteration": "policy_iteration_four_rooms",
    "experiment=dqn_four_rooms agent=ppo name=mine": "mine",
    "experiment=pong": "pong",
    "experiment=pong env.game=breakout": "ppo_breakout",
    "study=atari experiment=a2c_pong env.game=qbert": "a2c_cnn_qbert",
    "env=atari agent=dqn_cnn": "dqn_cnn_pong",
    "env=gym env.id=LunarLander-v3 agent=ppo_mlp": "ppo_mlp_lunar_lander",
    "env=lunar_lander agent=ppo_mlp": "ppo_mlp_lunar_lander",
    "env=cartpole agent=dqn_mlp": "dqn_mlp_cartpole",
    "env=cartpole agent=dqn": "dqn_linear_cartpole",
    "experiment=dqn_cartpole agent=dqn": "dqn_linear_cartpole",
    "experiment=dqn_cartpole agent=ppo": "ppo_linear_cartpole",
    "env=cartpole agent=sarsa": "sarsa_cartpole",
    "env=atari agent=sb3_ppo": "sb3_ppo_plain_pong",
    "env=cartpole env.id=Acrobot-v1 agent=dqn_mlp": "dqn_mlp_acrobot",
    "experiment=vae_digits": "vae_digits",
    "experiment=vae_digits data=mnist": "vae_mnist",
    "data=mnist model=vqvae": "vqvae_mnist",
}


@pytest.mark.parametrize("typed", NAMES)
def test_a_run_is_named_by_what_was_composed(typed):
    root = "gen" if "vae" in typed else "rl"
    with hydra.initialize_config_dir(str(composition.conf_dir()), version_base="1.3"):
        cfg = hydra.compose(root, typed.split(), return_hydra_config=True)
    GlobalHydra.instance().clear()
    assert cfg.name == NAMES[typed]


def test_no_experiment_states_its_own_name_again():
    """It would stay where another agent is chosen beside it."""
    found = sorted((composition.conf_dir() / "experiment").glob("*.yaml"))
    assert found and not [path.name for path in found if "\nname:" in path.read_text()]


def test_ids_as_names():
    ids = "LunarLander-v3", "MinAtar/Breakout-v1", "my_env:My/Corridor-v0", "MiniGrid-Empty-5x5-v0", "ALE/Pong-v5"
    assert [snake(id) for id in ids] == [
        "lunar_lander", "min_atar_breakout", "my_corridor", "mini_grid_empty_5x5", "ale_pong",
    ]  # fmt: skip


def test_another_agent_beside_an_experiment_has_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny = ["tracker=none", "device=cpu", "loop.total_steps=400", "loop.eval_every=null", "loop.eval_episodes=1"]
    assert cli.main("rl-lab", "rl", COMMANDS, ["train", "experiment=dqn_four_rooms", "agent=a2c", *tiny]) == 0
    (summary,) = Path("runs").glob("*/*/summary.json")
    assert summary.parent.parent.name == "a2c_four_rooms" and '"name": "a2c_four_rooms"' in summary.read_text()


@pytest.mark.parametrize(
    ("config", "title"),
    [
        ({"name": "dqn_four_rooms", "choices": {"agent": "dqn", "env": "four_rooms"}}, "dqn_four_rooms · seed 0"),
        ({"name": "mine", "choices": {"agent": "dqn", "env": "four_rooms"}}, "mine · dqn in four_rooms · seed 0"),
        (
            {"name": "pong", "choices": {"agent": "ppo", "env": "atari"}, "env": {"game": "pong"}},
            "pong · ppo in pong · seed 0",
        ),
        (
            {"name": "x", "choices": {"agent": "ppo_mlp", "env": "gym"}, "env": {"id": "LunarLander-v3"}},
            "x · ppo_mlp in LunarLander-v3 · seed 0",
        ),
        ({"name": "older"}, "older · seed 0"),
    ],
)
def test_a_film_names_agent_and_environment(config, title):
    assert titled(OmegaConf.create(config | {"seed": 0})) == title


MADE = """
from gen_lab.models.independent import Independent


class MADE(Independent):
    def __init__(self, spec, device, seed, *, smoothing: float = 0.01):
        super().__init__(spec, device, seed, smoothing=smoothing)
"""


def test_a_call_of_ones_own_takes_the_place_of_another_with_its_settings(tmp_path, monkeypatch, capsys):
    """The settings of the one before go with it, and the run is named by the new one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "made_in_a_test.py").write_text(MADE)
    mine = [
        "train",
        "experiment=vae_digits",
        "model._target_=made_in_a_test.MADE",
        "tracker=none",
        "loop.total_steps=2",
    ]
    assert cli.main("gen-lab", "gen", GEN, [*mine, "+model.smoothing=0.5"]) == 0
    (folder,) = (tmp_path / "runs/made_digits").iterdir()
    assert OmegaConf.load(folder / "config.yaml").model == {
        "_target_": "made_in_a_test.MADE", "_partial_": True, "smoothing": 0.5}  # fmt: skip
    capsys.readouterr()
    for words, line in (("model.latents=3", "no setting 'model.latents'; it is a setting of model=autoencoder"),
                        ("model.smoothing=0.5", "'model.smoothing' has its default and is not in the YAML; write +")):  # fmt: skip
        assert cli.main("gen-lab", "gen", GEN, [*mine, words]) == 2
        assert line in capsys.readouterr().err
