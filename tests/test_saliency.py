"""Saliency: gradients that are known, Grad-CAM by hand, and the right place in the picture that is drawn."""

import json
from pathlib import Path
from types import SimpleNamespace

import hydra
import numpy as np
import pytest
import torch
from PIL import Image
from stable_baselines3 import DQN, PPO
from stated import stated
from torch import nn

from rl_lab.__main__ import COMMANDS
from rl_lab.agents.random import Random
from rl_lab.agents.sb3 import AsVecEnv, SB3Agent
from rl_lab.core.errors import UserError
from rl_lab.core.launching import cli, composition
from rl_lab.looking.heat import Box, glowing
from rl_lab.networks.torsos import gather, mlp, nature_cnn, prepared
from rl_lab.playing.player import Player
from rl_lab.playing.saliency import Window, choice, grad_cam, gradient, laid_out, saliency_of, weighed
from rl_lab.playing.scenes import scenery
from rl_lab.types import Spec, View

Atari = stated("env/atari")
Collect = stated("env/collect")
Gym = stated("env/gym")
MDPEnv = stated("env/base/tabular")
gridworld = stated("env/base/gridworld", "mdp")

CPU = torch.device("cpu")
NATURE = [Window((8, 8), (4, 4), (0, 0)), Window((4, 4), (2, 2), (0, 0)), Window((3, 3), (1, 1), (0, 0))]


# -- gradients


def test_the_gradient_of_a_linear_net_is_its_weights():
    weight = torch.tensor([[[1.0, -2.0], [0.0, 4.0]], [[-3.0, 1.0], [0.5, 0.0]]])  # [C, H, W]
    score = lambda obs: (obs * weight).sum((1, 2, 3))
    obs = torch.randn(3, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(gradient(score, obs), torch.tensor([[4.0, 3.0], [0.5, 4.0]]).expand(3, 2, 2))
    assert not obs.requires_grad


def test_only_the_greatest_value_is_explained():
    weight = torch.tensor([[1.0, 0.0, 5.0], [2.0, 3.0, 0.0]])  # [A, pixels]
    view = lambda obs: View(obs.flatten(1).float() @ weight.T, None, "action values")
    obs = torch.tensor([[1, 0, 0], [0, 0, 1]], dtype=torch.uint8).view(2, 1, 1, 3)  # values (1, 2) and (5, 0)
    assert saliency_of("gradient", view, obs).tolist() == [[[2.0, 3.0, 0.0]], [[1.0, 0.0, 5.0]]]


def test_of_a_policy_the_log_probability_is_explained():
    """d log pi(a) / d logits = one-hot(a) - pi, with pi = (0.2, 0.8)."""
    logits = torch.tensor([[1.0, 4.0]]).log()
    view = lambda obs: View((logits + obs.flatten(1)).softmax(-1), None, "probabilities")
    torch.testing.assert_close(
        gradient(lambda x: choice(view(x)), torch.zeros(1, 1, 1, 2))[0, 0], torch.tensor([0.2, 0.2])
    )
    assert choice(view(torch.zeros(1, 1, 1, 2))).item() == pytest.approx(np.log(0.8))


@pytest.mark.parametrize("standardise", [False, True])
def test_a_network_of_frames_is_explained_where_it_acts(standardise):
    """Its gradient with respect to the numbers that it makes of the bytes, not at bytes that are taken as numbers."""
    obs = torch.randint(256, (3, 4, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    spec = Spec((4, 20, 20), torch.uint8, ("a", "b"), frame_stack=4)
    torch.manual_seed(0)
    torso = stated("agent/network/cnn", layers=[[8, 4, 2], [8, 3, 1]], hidden=[16], standardise=standardise)(spec)
    gather(torso, torch.cat([obs, obs // 2]))
    head, seen = nn.Linear(16, 2), []

    def view(x):
        q = head(torso(x))
        seen.append(q.detach())
        return View(q, q.amax(-1), "action values")

    numbers = prepared(torso, obs).requires_grad_()
    (slope,) = torch.autograd.grad(head(torso(numbers)).amax(-1).sum(), numbers)
    torch.testing.assert_close(saliency_of("gradient", view, obs), slope.abs().sum(1))
    assert torch.equal(seen[-1], head(torso(obs)).detach()), "what is explained is the choice that it makes"
    assert saliency_of("grad_cam", view, obs).shape == (3, 20, 20)
    assert torch.equal(seen[-1], head(torso(obs)).detach())


def test_a_torso_with_as_many_features_as_there_are_bytes_is_no_layer_that_reads_them():
    obs = torch.randint(256, (2, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    spec = Spec((1, 8, 8), torch.uint8, ("a", "b"))
    torch.manual_seed(0)
    torso, head = mlp(spec, hidden=[64]), nn.Linear(64, 2)
    view = lambda x: View(head(torso(x)), None, "action values")
    numbers = (obs / 255).flatten(1).requires_grad_()
    (slope,) = torch.autograd.grad(head(torso[1:](numbers)).amax(-1).sum(), numbers)
    torch.testing.assert_close(saliency_of("gradient", view, obs), slope.abs().view(2, 8, 8))


# -- Grad-CAM


def net() -> nn.Sequential:
    """Features x and relu(2 x - 3), each multiplied by its own weights and summed."""
    layers = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 1, bias=False))
    with torch.no_grad():
        layers[0].weight.copy_(torch.tensor([1.0, 2.0]).view(2, 1, 1, 1))
        layers[0].bias.copy_(torch.tensor([0.0, -3.0]))
        layers[3].weight.copy_(torch.tensor([[1.0, 0.0, 0.0, 1.0, 1.0, -1.0, -1.0, -3.0]]))
    return layers


def test_grad_cam_by_hand():
    """alpha = (2 / 4, -4 / 4) of the features after their ReLU, x and (0, 1, 3, 5); so 0.5 x - (0, 1, 3, 5)."""
    obs = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 1, 2, 2)
    heat = grad_cam(lambda x: net()(x).squeeze(-1), obs)
    assert heat.tolist() == [[[0.5, 0.0], [0.0, 0.0]]]
    features = torch.tensor([[[[1.0, 2.0]], [[3.0, 5.0]]]])  # [1, 2, 1, 2]
    assert weighed(features, torch.tensor([[[[2.0, 4.0]], [[-1.0, 0.0]]]])).tolist() == [[[1.5, 3.5]]]


def test_an_activation_in_place_counts_too():
    obs, layers = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 1, 2, 2), net()
    layers[1].inplace = True
    assert grad_cam(lambda x: layers(x).squeeze(-1), obs).tolist() == [[[0.5, 0.0], [0.0, 0.0]]]


def test_the_last_convolution_that_the_score_depends_on():
    """A value's own torso runs after the policy's and has no say in the choice."""
    policy, value = net(), nn.Conv2d(1, 1, 1)

    def score(obs):
        y = policy(obs).squeeze(-1)
        value(obs)
        return y

    assert grad_cam(score, torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])).tolist() == [[[0.5, 0.0], [0.0, 0.0]]]


def test_units_lie_in_the_middle_of_what_they_see():
    """Of the Nature network at 17.5 + 8 i: row 2 at 33.5, column 5 at 57.5; halfway to the next, half the heat."""
    heat = torch.zeros(1, 7, 7)
    heat[0, 2, 5] = 1.0
    spread = laid_out(heat, NATURE, (84, 84))[0]
    assert spread.shape == (84, 84)
    assert spread[33, 57].item() == pytest.approx(0.9375**2) and spread[34, 58].item() == pytest.approx(0.9375**2)
    assert spread[29, 57].item() == pytest.approx(0.4375 * 0.9375, abs=1e-5)
    rows, columns = torch.nonzero(spread > 1e-5, as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (26, 41, 50, 65)
    corner = torch.zeros(1, 7, 7)
    corner[0, 0, 0] = 1.0
    assert (laid_out(corner, NATURE, (84, 84))[0, :18, :18] > 0.99).all()


def test_what_a_unit_sees_is_asked_of_the_network():
    """The pixels that move unit (2, 5) of the Nature network's last convolution have the middle that is drawn."""
    torso = nature_cnn(Spec((4, 84, 84), torch.uint8, ("a",)))
    for layer in torso.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.constant_(layer.weight, 0.01)
    seen = gradient(lambda obs: torso[:7](obs)[:, 0, 2, 5], torch.full((1, 4, 84, 84), 100.0))[0]
    rows, columns = torch.nonzero(seen, as_tuple=True)
    assert ((rows.min() + rows.max()) / 2, (columns.min() + columns.max()) / 2) == (33.5, 57.5)

    def only(obs):  # the same unit alone has a say
        features = torso[:7](obs)
        mask = torch.zeros(7, 7)
        mask[2, 5] = 1.0
        return (features * mask).sum((1, 2, 3))

    obs = torch.zeros(1, 4, 84, 84)
    obs[..., 20:47, 44:71] = 255.0
    heat = grad_cam(only, obs)[0]
    y, x = np.unravel_index(int(heat.argmax()), (84, 84))
    assert abs(y - 33.5) < 5 and abs(x - 57.5) < 5


# -- the place in the picture


class Looker:
    """An agent that goes by one place of its observation alone."""

    def __init__(self, *place: int):
        self.place = place

    def act(self, obs, greedy=True):
        return torch.zeros(len(obs), dtype=torch.int64)

    def view(self, obs):
        q = obs[(slice(None), *self.place)].float()
        return View(torch.stack([q, q - 1], -1), q, "action values")


def lit(env, place: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Which pixels [H, W] of the picture a Looker's saliency lights, and what it draws."""
    scene = scenery(Player("looker", "looker", Path(), env, Looker(*place), 0, "steps"), "gradient")
    obs = env.reset(0)
    drawn = np.asarray(scene(obs), int)
    scene = scenery(Player("blind", "blind", Path(), env, Looker(*place), 0, "steps"), "grad_cam")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rl_lab.playing.scenes.saliency_of", lambda method, view, obs: torch.zeros(1, *obs.shape[-2:]))
        dark = np.asarray(scene(obs), int)
    return np.abs(drawn - dark).sum(-1), drawn


@pytest.mark.parametrize("place", [(3, 0, 0), (3, 20, 60), (0, 83, 41)])
def test_a_pixel_of_an_atari_frame(place):
    """84 x 84 of 210 x 160, drawn twice as large: the light's middle is the pixel's, and it is no larger than two."""
    env = Atari("pong", 1, camera=True, num_threads=1)
    light, drawn = lit(env, place)
    env.close()
    assert drawn.shape == (422, 322, 3)
    y, x = (place[1] + 0.5) / 84 * 420 + 0.5, (place[2] + 0.5) / 84 * 320 + 0.5
    rows, columns = np.nonzero(light)
    if place[1:] != (0, 0):  # there the light is cut at the rim
        assert abs((rows.min() + rows.max()) / 2 - min(y, 421 - (rows.max() - rows.min()) / 2)) <= 1.5
        assert abs((columns.min() + columns.max()) / 2 - x) <= 1.5
    assert np.ptp(rows) <= 10 and np.ptp(columns) <= 8
    brightest = np.unravel_index(light.argmax(), light.shape)
    assert abs(brightest[0] - y) <= 4 and abs(brightest[1] - x) <= 4


def test_a_cell_of_a_gridworld():
    env = MDPEnv(gridworld("...G\n.#.X\nS...", living_reward=-0.04), 1, time_limit=9, obs="planes")
    light, drawn = lit(env, (1, 2, 3))
    cell = (drawn.shape[1] - 6) // 4
    rows, columns = np.nonzero(light)
    assert (rows.min(), rows.max() + 1) == (3 + 2 * cell, 3 + 3 * cell)
    assert (columns.min(), columns.max() + 1) == (3 + 3 * cell, 3 + 4 * cell)


def test_a_cell_of_collect():
    env = Collect(1, size=6, goals=2, mazes=4)
    light, drawn = lit(env, (2, 1, 4))
    cell = (drawn.shape[1] - 6) // 6
    rows, columns = np.nonzero(light)
    assert (rows.min(), rows.max() + 1) == (3 + cell, 3 + 2 * cell)
    assert (columns.min(), columns.max() + 1) == (3 + 4 * cell, 3 + 5 * cell)


def test_no_heat_no_light():
    picture = Image.new("RGB", (4, 4), "#808080")
    assert np.array_equal(glowing(picture, np.zeros((2, 2)), Box(0, 0, 4, 4), True), picture)
    half = np.asarray(glowing(picture, np.array([[1.0, 0.5]]), Box(0, 0, 4, 2), False))
    assert half[0, 0].tolist() == [230, 222, 162]  # the greatest: a fifth of grey, four of (255, 245, 170)
    assert half[0, 2].tolist() == [173, 111, 81]  # 0.6 (128, 128, 128) + 0.4 (240, 85, 10): between red and orange
    assert half[3, 0].tolist() == [128, 128, 128]


# -- every agent that has a network


@pytest.mark.parametrize(
    "agent", ["dqn_mlp", "dqn_mlp noisy", "a2c_mlp", "ppo_mlp", "pqn_mlp", "reinforce_mlp", "actor_critic", "vpn"]
)
def test_every_network_has_a_gradient(agent):
    name, *noisy = agent.split()
    more = ["agent.noisy=0.5", "agent.stream_units=8"] if noisy else []
    more += ["agent.zero_heads=false"] if name == "actor_critic" else []
    arguments = ["env=four_rooms", "env.obs=planes", "env.num_envs=1", f"agent={name}", "device=cpu", *more]
    cfg = composition.compose(composition.conf_dir(), "rl", arguments)
    env = hydra.utils.instantiate(cfg.env)
    learner = hydra.utils.instantiate(cfg.agent)(env.spec, device=CPU, seed=0)
    player, obs = Player("", "", Path(), env, learner, 0, "steps"), env.reset(0)
    heat = saliency_of("gradient", learner.view, obs)
    assert heat.shape == (1, 13, 13) and heat.isfinite().all() and heat.max() > 0
    assert not any(x.requires_grad for x in player.view(obs)[:2])


@pytest.mark.parametrize("algorithm", [DQN, PPO])
def test_stable_baselines_too(algorithm):
    env = MDPEnv(gridworld("..G\nS.."), 1, time_limit=9, obs="planes")
    options = {"buffer_size": 1} if algorithm is DQN else {"n_steps": 4, "batch_size": 4}
    agent = SB3Agent(algorithm("MlpPolicy", AsVecEnv(env), policy_kwargs={"normalize_images": False}, **options))
    assert saliency_of("gradient", agent.view, env.reset(0)).max() > 0


@pytest.mark.parametrize("agent", ["dqn_cnn", "a2c_cnn", "ppo_cnn", "pqn_cnn", "vpn_atari"])
def test_every_convolutional_network_has_a_grad_cam(agent):
    """Each on noise; among a few frames there is one where something speaks for the choice."""
    spec = Spec((4, 84, 84), torch.uint8, ("a", "b", "c"), frame_stack=4)
    cfg = composition.compose(composition.conf_dir(), "rl", ["env=atari", f"agent={agent}", "device=cpu"])
    learner = hydra.utils.instantiate(cfg.agent)(spec, device=CPU, seed=0)
    frames = torch.randint(256, (6, 1, 4, 84, 84), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    heats = [saliency_of("grad_cam", learner.view, obs) for obs in frames]
    assert all(heat.shape == (1, 84, 84) and heat.isfinite().all() and heat.min() >= 0 for heat in heats)
    assert max(float(heat.max()) for heat in heats) > 0


# -- mistakes


def test_mistakes():
    world = gridworld("..G\nS..")
    planes, table = (MDPEnv(world, 1, time_limit=9, obs=obs) for obs in ("planes", "one_hot"))
    player = lambda env, agent: Player("me", "me", Path(), env, agent, 0, "steps")
    linear = SimpleNamespace(view=lambda obs: View(nn.Linear(24, 4)(obs.flatten(1)), obs.sum(-1), "action values"))
    cases = [
        (player(planes, Random(planes.spec, CPU, 0)), "gradient",
         "saliency needs an agent whose choice has a gradient with respect to what it sees: a network"),
        (player(planes, linear), "grad_cam",
         "saliency=grad_cam needs a network with convolutions; saliency=gradient takes any network"),
    ]  # fmt: skip
    for who, method, line in cases:
        with pytest.raises(UserError) as error:
            saliency_of(method, who.agent.view, who.env.reset(0))
        assert str(error.value) == line
    with pytest.raises(
        UserError,
        match="^saliency=gradient needs an agent that sees a picture, and me sees 6 numbers; train it with env.obs=planes agent=dqn_mlp$",
    ):
        scenery(player(table, Random(table.spec, CPU, 0)), "gradient")


def test_a_picture_that_is_not_what_the_agent_sees():
    env = Gym("CartPole-v1", 1, camera=True)
    env.spec = env.spec._replace(obs_shape=(3, 84, 84))
    env.reset(0)
    player = Player("me", "me", Path(), env, Looker(0, 1, 1), 0, "steps")
    with pytest.raises(UserError, match="^saliency=gradient: me sees another picture than the one that is drawn$"):
        scenery(player, "gradient")(torch.zeros(1, 3, 84, 84))
    env.close()


@pytest.mark.slow
def test_from_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    common = ["tracker=none", "device=cpu", "loop.eval_episodes=1"]
    arguments = [
        "experiment=a2c_pong",
        "env.num_envs=1",
        "env.max_frames=80",
        "loop.total_steps=4",
        "loop.eval_every=4",
    ]
    assert cli.main("rl-lab", "rl", COMMANDS, ["train", *arguments, *common, "hydra.run.dir=pong"]) == 0
    show = ["render", "run=pong", "tracker=none", "device=cpu", "gif=false", "episodes=1", "saliency=gradient"]
    assert cli.main("rl-lab", "rl", COMMANDS, [*show, "out=glow.png"]) == 0
    assert cli.main("rl-lab", "rl", COMMANDS, [*show[:-1], "out=plain.png"]) == 0
    glow, plain = (np.asarray(Image.open(f"{name}.png").convert("RGB"), int) for name in ("glow", "plain"))
    different = np.abs(glow - plain).sum(-1) > 0
    assert glow.shape == plain.shape and different[60:470, 20:330].mean() > 0.5 and not different[:56].any()
    assert cli.main("rl-lab", "rl", COMMANDS, [*show, "out=film.mp4"]) == 0 and Path("film.mp4").stat().st_size > 5_000
    assert json.loads(Path("pong/summary.json").read_text())["state"] == "finished"
    capsys.readouterr()
    assert cli.main("rl-lab", "rl", COMMANDS, [*show[:-1], "saliency=gradcam"]) == 2
    assert capsys.readouterr().err == "rl-lab: saliency=gradcam is not a choice; did you mean grad_cam?\n"
