"""A user's mistake: the exact line, exit code 2, and nothing left behind."""

import errno
import json
import os
import re
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from rl_lab.__main__ import COMMANDS
from rl_lab.core import checkpoint, files, locks
from rl_lab.core.errors import UserError, counted, nearest, pasted
from rl_lab.core.launching import arguments, cli, composition, meant
from rl_lab.core.launching.explain import plain_errors

TINY = ["experiment=dqn_four_rooms", "tracker=none", "device=cpu", "loop.total_steps=400", "loop.eval_episodes=1"]


def rl_lab(capsys, *arguments: str) -> tuple[int, str]:
    """The exit code and what stderr ends with."""
    code = cli.main("rl-lab", "rl", COMMANDS, list(arguments))
    lines = capsys.readouterr().err.splitlines()
    return code, lines[-1] if lines else ""


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def finished(here, capsys) -> Path:
    assert rl_lab(capsys, "train", *TINY, "hydra.run.dir=run")[0] == 0
    return Path("run")


TRAIN = {
    "agent.gama=0.9": "no setting 'agent.gama'; did you mean agent.gamma?",
    "agent.optimizer.lrr=0.9": "no setting 'agent.optimizer.lrr'; did you mean agent.optimizer.lr?",
    "hydra.run.dri=x": "no setting 'hydra.run.dri'; did you mean hydra.run.dir?",
    "agent=dqnn": "no choice 'dqnn' for agent; did you mean agent=dqn?",
    "agent=zzz": "no choice 'zzz' for agent; rl-lab agents lists them",
    "agent.gamma=0.9,": "cannot read the setting: agent.gamma=0.9, (mismatched input '<EOF>'); a list is written [1,2], and a "
    "text in quotes",
    "agent.optimizer.lr=inf agent=dqn": "agent.optimizer.lr=inf must be finite",
    "--experiment dqn_cartpole": "cannot read the command line: unrecognized arguments: --experiment; settings are "
    "written setting=value, and rl-lab --help lists what there is",
    "experiment dqn_cartpole": "no run folder experiment; a setting is written experiment=<name>, without spaces",
    "experiment=cartpole": "no choice 'cartpole' for experiment; did you mean experiment=a2c_cartpole or experiment=dqn_cartpole or experiment=ppo_cartpole or experiment=pqn_cartpole?",
    "env=breakout": "no choice 'breakout' for env; it is a game: env=atari env.game=breakout",
    "env=ALE/Pong-v5": "no choice 'Pong-v5' for env/ALE; it is a game: env=atari env.game=pong",
    "env=PongNoFrameskip-v4": "no choice 'PongNoFrameskip-v4' for env; it is a game: env=atari env.game=pong",
    "env=Blackjack-v1": "no choice 'Blackjack-v1' for env; env=gym env.id=Blackjack-v1 makes an environment of Gymnasium's",
    "experiment=pong lr=0.1": "no setting 'lr'; did you mean agent.optimizer.lr?",
    "experiment=pong height=4": "no setting 'height'; did you mean env.height?",
    "agent=PPO": "no choice 'PPO' for agent; did you mean agent=ppo?",
    "game=pong": "no setting 'game'; env.game is a setting of env=atari",
    "env_id=CartPole-v1": "no setting 'env_id'; env.id is a setting of env=gym, env=toy_text",
    "agent.epsilon=0.1": "agent.epsilon=0.1 must be a call, a mapping with _target_; its settings are changed one by one: agent.epsilon.<name>=...",
    "env=four_room": "no choice 'four_room' for env; did you mean env=four_rooms?",
    "experiment=dqn_fourrooms": "no choice 'dqn_fourrooms' for experiment; did you mean experiment=dqn_four_rooms?",
    "agent.max_abs_rewards=1": "no setting 'agent.max_abs_rewards'; did you mean agent.max_abs_reward?",
    "env=atari agent=random env.camera=true": "'env.camera' has its default and is not in the YAML; write +env.camera=... to set it",
    # never in circles: the setting of another choice or lab, or one that is not to be set at all
    "env.id=CartPole-v1": "no setting 'env.id'; it is a setting of env=gym, env=toy_text",
    "+env.id=CartPole-v1": "no setting 'env.id'; it is a setting of env=gym, env=toy_text",
    "env=gym env.kwargs.n=8": "no setting 'env.kwargs.n'; an argument of the environment's own is +env.options.n=...",
    "env=gym env.num_env=8": "no setting 'env.num_env'; did you mean env.num_envs? (an argument of the environment's own is +env.options.num_env=...)",
    "env.path=my.npz": "no setting 'env.path'; it is a setting of env=mdp_file",
    "agent=a2c agent.replay.n_step=3": "no setting 'agent.replay.n_step'; it is a setting of agent=dqn",
    "agent.lr=0.1": "no setting 'agent.lr'; did you mean agent.optimizer.lr?",
    "agent.seed=5": "agent.seed is set by the lab itself; leave it out",
    "env.mdp.rewards.X=1": "'env.mdp.rewards.X' is not in the YAML; write +env.mdp.rewards.X=... to add it",
    "+env.mdp.rewards.X=1 loop.total_steps=0": "loop.total_steps=0 must be at least 1",
    "experiment=vae_digits": "experiment=vae_digits is for gen-lab: gen-lab train experiment=vae_digits",
    "model.beta=4": "no setting 'model.beta' in rl-lab; gen-lab has it: gen-lab train",
    "experiment=dqn_four_rooms planner=value_iteration": "experiment=dqn_four_rooms is about learning, and "
    "planner=value_iteration learns nothing; leave the experiment out: planner=value_iteration env=four_rooms",
    "planner=value_iteration loop.total_steps=5": "no setting 'loop.total_steps'; the chosen loop takes no such setting; leave it out",
    "agnt=dqn": "no setting 'agnt'; did you mean agent?",
    "agent.gamma=1.5": "agent.gamma=1.5 must be between 0 and 1",
    "agent.gamma=1" + 400 * "0": "agent.gamma=10000000000000000000... must be a number below 2e+308",
    "agent=dqn env=four_rooms agent.replay_ratio=inf": "agent.replay_ratio=inf must be finite",
    "loop=preferences agent=a2c loop.predictor.penalty=inf": "loop.predictor.penalty=inf must be finite",
    "agent=dqn agent/value=categorical agent.value.high=inf": "agent.value.high=inf must be finite",
    "agent=ppo agent.decay_clip=true agent.decay_steps=9 agent.clip=inf": "agent.decay_clip=true has nothing to lessen, as agent.clip=inf; leave it out, or choose a clip",
    "agent=fitted_q_trees loop=fit_q agent.max_features=0": "agent.max_features=0 must be above 0 and at most 1",
    "agent=fitted_q_trees loop=fit_q agent.n_jobs=0": "agent.n_jobs=0 is no number of cores; choose 1 or more, or -1: all of them",
    "experiment=vpn_russell_norvig agent.network.encoder.channels=[8,8]": "agent.network.encoder.channels=[8, 8] must list 3, one for each convolution",
    "experiment=sarsa_mountain_car env.frame_stack=2": "agent/network=tiles is for observations of one row of numbers, not (2, 2); choose "
    "agent/network=mlp, or leave out env.frame_stack",
    "experiment=sarsa_mountain_car agent.network.low=[-1.2,-inf]": "agent.network.low[1]=-inf must be below high[1]=0.07, both of them finite",
    "experiment=preferences_four_rooms agent=reinforce loop.hidden_ends=true": "loop.hidden_ends=true joins episodes, and REINFORCE learns at the "
    "end of each; choose another agent, or loop.hidden_ends=false",
    "loop=preferences agent=fitted_q_linear": "loop=preferences is not for rl_lab's LeastSquares; choose loop=fit_q, or another agent",
    "agent.gamma=nan": "agent.gamma=nan must be a number",
    "agent.gamma=high": "agent.gamma=high must be a number",
    "env.num_envs=0": "env.num_envs=0 must be at least 1",
    "env.num_envs=2.5": "env.num_envs=2.5 must be a whole number",
    "loop.total_steps=1e300": "loop.total_steps=100000000000000005250476025520442024870446858110815915491585... must be at most "
    "9,007,199,254,740,992",
    "loop.total_steps=-5": "loop.total_steps=-5 must be at least 1",
    "agent.batch_size=99999": "agent.batch_size=99999 must be at most agent.replay.capacity=20000",
    "agent.optimizer.lr=0": "agent.optimizer.lr=0 must be above 0",
    "env.mdp.noise=2": "env.mdp.noise=2 must be between 0 and 1",
    "loop.eval_env.time_limit=5": "'loop.eval_env.time_limit' is env.time_limit; write +loop.eval_env.time_limit=... to set it for "
    "evaluations alone",
    "+loop.eval_env.tme_limit=5": "no setting 'loop.eval_env.tme_limit': env=four_rooms has no tme_limit; choose another env or loop, "
    "or leave it out",
    "loop=collect env=collect_small agent=dqn_collect loop.eval_env.slp=1": "no setting 'loop.eval_env.slp'; did you mean "
    "loop.eval_env.slip?",
    "env.mdp.slip=sidewise": "env.mdp.slip=sidewise is not a choice; did you mean sideways?",
    "precision=fp16": "precision=fp16 is not a choice; choose from auto, fp32, bf16",
    "agent.double=maybe": "agent.double=maybe must be true or false",
    "threads=0": "threads=0 must be at least 1, or auto",
    "seed=-1": "seed=-1 must be at least 0",
    "checkpoint.every=-1": "checkpoint.every=-1 must be at least 0",
    "device=gpu": "device=gpu is not a choice; choose from auto, cpu, cuda, xpu, mps",
    "agent.gamma=[": "cannot read the setting: agent.gamma=[ (no viable alternative at input '['); a list is written [1,2], "
    "and a text in quotes",
    "env=atari agent=dqn_cnn env.game=pnog": "no Atari game 'pnog'; did you mean pong?",
    "env=gym agent=a2c_mlp env.id=CartPoel-v1": "no Gymnasium environment 'CartPoel-v1'; did you mean CartPole-v1?",
    "env=gym agent=a2c_mlp env.id=Pendulum-v1": "env.id=Pendulum-v1 is refused: its actions are Box(-2.0, 2.0, (1,), float32), "
    "and the agents here need discrete ones; 'env.wrappers=[{DiscretizeAction: {bins: 5}}]' makes them so",
    "env=atari planner=value_iteration": "value_iteration plans with a known model, and env=atari has none; choose a gridworld, "
    "or a learning agent",
    "env=gym agent=dqn_cnn": "agent.network=nature_cnn needs frames of at least 36 x 36, not observations (4,); "
    "choose agent/network=mlp or agent/network=linear",
    # what a signature says of its arguments: a call where a call is meant, and one that gives what is wanted
    "env.mdp=5": "env.mdp=5 must be a call, a mapping with _target_; its settings are changed one by one: env.mdp.<name>=...",
    "loop.env=null": "loop.env=null must be a call, a mapping with _target_; its settings are changed one by one: loop.env.<name>=...",
    "loop.eval_env=x": "loop.eval_env=x must be a call, a mapping with _target_; its settings are changed one by one: loop.eval_env.<name>=...",
    "agent.gamma={_target_:os.getcwd}": "agent.gamma._target_=os.getcwd must give a float, and does not",
    "agent.network._target_=rl_lab.memory.Replay": "agent.network._target_=rl_lab.memory.Replay must give a Module, and does not",
    "agent.network._partial_=x": "agent.network._partial_=x must be true or false",
    "agent.network._partial_=false": "agent.network._partial_=False must be true, since the lab completes the call",
    "agent._target_=5": "agent._target_=5 must be the dotted name of what is called, such as torch.optim.Adam",
    "agent._target_=..": "agent._target_=.. must be the dotted name of what is called, such as torch.optim.Adam",
    "+agent._args_=[1]": "agent._args_ is refused: settings are given by their names",
    "+agent.seed=5": "agent.seed is set by the lab itself; leave it out",
    "experiment=sb3_ppo_cartpole agent.n_epochs=0.5": "agent.n_epochs=0.5 must be a whole number",
    "env.device=x": "env.device=x is not a choice; choose from auto, cpu, cuda, xpu, mps",
    "device=cuda:x": "device=cuda:x is not a choice; choose from auto, cpu, cuda, xpu, mps",
    "+agent.optimizer.betas=[0.5]": "agent.optimizer.betas=[0.5] must be a list of 2",
    "~loop.total_steps": "loop.total_steps is missing; give it a value: ++loop.total_steps=...",
    "env.num_envs=1e9": "env.num_envs=1000000000 must be at most 1,048,576",
    "env=atari agent=dqn_cnn env.num_envs=1e9": "env.num_envs=1000000000 must be at most 16,384",
    "loop.eval_episodes=1e12": "loop.eval_episodes=1000000000000 must be at most 10,000,000",
    "agent/network=value_prediction_vector": "agent.network=ValuePrediction is a whole model, and this agent wants the layers "
    "below its values; choose agent/network=mlp or agent/network=linear",
    "agent=optimal_collector": "agent.goal_reward needs env.goal_reward, which the chosen env does not have; choose another env",
    "loop=collect": "no setting 'loop.eval_env.option_gamma': env=four_rooms has no option_gamma; choose another env or loop, "
    "or leave it out",
    "loop=collect env=collect loop.eval_env.slip=0.1": "'loop.eval_env.slip' is env.slip; write +loop.eval_env.slip=... to set it for "
    "evaluations alone",
    "loop=fit": "loop=fit is not for rl-lab; leave it out, or choose from collect, crew, demonstrated, fit_q, overlapped, plan, preferences, reward_design, sb3, seeds, train",
    "agent=a2c agent/priorities=none": "agent/priorities is not for the chosen agent; leave it out",
    "agent.network=mlp": "agent.network=mlp must be a call, a mapping with _target_; agent/network=... chooses "
    "one by its name; its settings are changed one by one: agent.network.<name>=...",
    "planner=value_iteration env=random_maze env.mdp.map.height=1e9": "env.mdp.map.height=1000000000 must be at "
    "most 4,001",
    "planner=value_iteration env=gambler env.mdp.goal=1e9": "env.mdp.goal=1000000000 must be at most 1,000,000",
    "loop=seeds loop.seeds=1e9": "loop.seeds=1000000000 must be at most 4,096",
    "experiment=vpn_four_rooms agent.depth=1e9": "agent.depth=1000000000 must be at most 1,000",
    "loop=fit_q agent=fitted_q_linear loop.data=x loop.random_steps=9": "loop.random_steps=9 would be ignored, as loop.data=x stands in its "
    "place; leave it out, or type loop.data=null too",
    "planner=behaviour_cloning loop.temperature=0.5": "loop.temperature=0.5 would be ignored, as loop.expert=optimal; leave it out, or "
    "type loop.expert=soft too",
    "loop=preferences loop.end_reward=-2": "loop.end_reward=-2 would be ignored, as loop.hidden_ends=false; leave it out, or type "
    "loop.hidden_ends=... too",
    "agent=ppo env=four_rooms agent.decay_steps=0 agent.decay_floor=0.5": "agent.decay_floor=0.5 would be ignored, as agent.decay_steps=0; leave it out, "
    "or type agent.decay_steps=... too",
    "checkpoint.evry=1": "no setting 'checkpoint.evry'; did you mean checkpoint.every?",
    "agent=ppo agent/network=cnn agent.network.standardise=true": "agent.network.standardise=true would be ignored, as agent.gather_steps=0; leave it "
    "out, or type agent.gather_steps=... too",
    "env=russell_norvig agent=sarsa agent.lambda_=0.9": "agent.lambda_=0.9 would be ignored, as agent.rollout_length=1; leave it out, or "
    "type agent.rollout_length=... too",
    "agent=ppo agent.decay_clip=true": "agent.decay_clip=true would be ignored, as agent.decay_steps=0; leave it out, or "
    "type agent.decay_steps=... too",
    "agent=a2c agent.gather_steps=4096": "agent.gather_steps=4096 would be ignored: it needs agent.network.standardise, and here there is "
    "none; leave it out",
    "agent=reinforce agent.credit=total_return agent.exact_discount=true": "agent.exact_discount=true would be ignored, as agent.credit=total_return; "
    "leave it out, or type agent.credit=reward_to_go too",
    "agent=reinforce agent/network=cnn agent.network.standardise=true": "agent.network.standardise=true would be ignored: it needs agent.gather_steps, and here there is none; "
    "leave it out",
    "planner=value_iteration precision=bf16": "precision=bf16 would be ignored, as no network of this run computes in bfloat16: those "
    "of agent/network=cnn and nature_cnn do; leave it out",
    "agent=dqn precision=bf16": "precision=bf16 would be ignored, as no network of this run computes in bfloat16: those "
    "of agent/network=cnn and nature_cnn do; leave it out",
    "hydra/launcher=joblib": "hydra/launcher=joblib is for several runs, and would be ignored; add -m, or leave it out",
    "hydra.launcher.n_jobs=2": "hydra.launcher.n_jobs=2 is for several runs, and would be ignored; add -m, or leave it out",
    "-sc": '-sc comes right after rl-lab: eval "$(rl-lab -sc install=bash)"',
    "-m -c job": "--multirun and --cfg say different things of what is to be done; give one of them (--cfg and --info print, "
    "of one run, and start none)",
    "study=gridworlds agent=dqn,a2c loop.totl_steps=5": "no setting 'loop.totl_steps'; did you mean loop.total_steps?",
    "--resolve": "--resolve is for --cfg=job, which prints the settings and runs nothing; leave it out",
    # groups
    "agent=${oc.env:HOME}": "agent=${oc.env:HOME} is not a choice; --help lists them",
    "tracker=/": "tracker=/ is not a choice; choose from csv, none, tensorboard, wandb",
    "protocol=machado": "protocol=machado sets env.frame_skip, and env=four_rooms has no such setting; leave the protocol out, "
    "or choose env=atari",
    "experiment=ppo_lunar_lander agent=dqn": "experiment=ppo_lunar_lander sets agent.rollout_length, which agent=dqn does not have; "
    "leave the experiment out: agent=dqn env=lunar_lander",
    "experiment=boxing agent=dqn": "experiment=boxing sets agent.rollout_length, which agent=dqn does not have; leave the experiment "
    "out: agent=dqn env=atari env.game=boxing",
    "experiment=dqn_cartpole agent=ppo_mlp agent.replay=3": "experiment=dqn_cartpole sets agent.replay_ratio, which agent=ppo_mlp does not "
    "have; leave the experiment out: agent=ppo_mlp env=cartpole",
    "experiment=[dqn_cartpole,ppo_cartpole]": "experiment=[dqn_cartpole,ppo_cartpole] is several, and a run is of one; "
    "-m experiment=<a>,<b> makes a run of each",
    "=3": "=3 names no setting before the =; write setting=value",
    "agent=ppo_mlp env=cartpole loop.total_steps=-5": "loop.total_steps=-5 must be at least 0",
    "agent.gamma=0.9,0.99": "agent.gamma=0.9,0.99 is several values; give one, or add -m for a run of each",
    "env.mdp.rewards={X:1}": "'env.mdp.rewards' takes new entries one by one: +env.mdp.rewards.<name>=...",
    "experiment=ppo_cartpole +loop.eval_env.id=MountainCar-v0": "loop.eval_env has other observations ((2,)) than env ((4,)), and "
    "what learns in one cannot act in the other; leave out the setting that makes them differ",
    "planner=value_iteration loop=seeds": "planner=value_iteration would be ignored: loop=seeds takes no planner; leave it out",
    "+agent.gamma=1": "'agent.gamma' is in the YAML; write agent.gamma=... without the +",
    f"{'x' * 300}=1": f"no setting '{'x' * 40}...'",
    "loop.lr=1": "no setting 'loop.lr'; did you mean agent.optimizer.lr?",
    "agent.learning_rate=1": "no setting 'agent.learning_rate'; did you mean agent.optimizer.lr?",
    "total_timesteps=9": "no setting 'total_timesteps'; did you mean loop.total_steps?",
    "agent.buffer_size=9": "no setting 'agent.buffer_size'; did you mean agent.replay.capacity?",
    "agent=ppo agent.clip_range=0.1": "no setting 'agent.clip_range'; did you mean agent.clip?",
    "-m seed=0,1,0": "seed=0,1,0 has 0 twice; name each value once",
    "-m env=four_rooms,windy,four_rooms": "env=four_rooms,windy,four_rooms has four_rooms twice; name each value "
    "once",
    "env=gym agent=dqn_mlp env.id=Taxi-v3": "env.id=Taxi-v3: Environment version v3 for `Taxi` is deprecated. Please use `Taxi-v4` "
    "instead.",
    "agent=dqn,a2c": "agent=dqn,a2c is several values; give one, or add -m for a run of each",
    "planner=[1]": "planner=[1] is not a choice; choose from behaviour_cloning, dagger, finite_horizon, "
    "inverse_programming, linear_programming, maximum_entropy, modified_policy_iteration, policy_evaluation, "
    "policy_iteration, prioritised_sweeping, q_iteration, reward_design, value_iteration",
    "agent=[[1]]": "agent=[[1]] is not a choice; --help lists them",
    "~checkpoint": "~checkpoint takes away what every run needs; leave it out",
    "~agent": "~agent takes away what every run needs; choose another agent=... instead",
    "~env._target_": "~env._target_ takes away what every run needs; leave it out",
    "tracker=???": "tracker has no choice; make one: tracker=..., one of csv, none, tensorboard, wandb",
    "env.num_envs=1,2": "env.num_envs=1,2 is several values; give one, or add -m for a run of each",
    "hydra.sweep.dir=x": "hydra.sweep.dir=x would be ignored: the place of one run is hydra.run.dir=...",
    "seed=range(0,3)": "seed=range(0,3) is several values; give one, or add -m for a run of each",
    "name=a=b": "cannot read the setting: name=a=b; a value with such signs is written in quotes: \"name='a=b'\"",
    "name=é": "cannot read the setting: name=é; a value with such signs is written in quotes: \"name='é'\"",
}  # fmt: skip
if not torch.cuda.is_available():
    TRAIN["device=cuda"] = "device=cuda, but torch sees no GPU here; use device=cpu or device=auto"


@pytest.mark.parametrize("overrides", TRAIN)
def test_training(here, capsys, overrides):
    code, line = rl_lab(capsys, "train", "tracker=none", *overrides.split())
    assert (code, line) == (2, f"rl-lab: {TRAIN[overrides]}")
    assert not list(here.iterdir()), "a mistake leaves nothing behind"


def test_more_random_steps_than_memory_holds(here, capsys):
    overrides = ["experiment=fitted_q_russell_norvig", "tracker=none", "device=cpu", "loop.random_steps=1e12"]
    code, line = rl_lab(capsys, "train", *overrides)
    assert code == 2 and line.startswith("rl-lab: loop.random_steps=1000000000000 needs 1.21e+05 GB of memory, and ")


def test_a_run_shorter_than_what_comes_before_the_first_update_says_so(here, capsys):
    for settings, words in (["agent.learning_starts=2000"], True), (["agent.learning_starts=100"], False):
        assert cli.main("rl-lab", "rl", COMMANDS, ["train", *TINY, *settings, "loop.eval_every=null"]) == 0
        assert ("nothing was learned: the run ended, after " in capsys.readouterr().err) == words


@pytest.mark.parametrize(
    "word", ["run=runs/a/0", "run=bild ä", "out='bild ä.png'", "x='it\\'s $5'", "env.x=[{A: {b: 5}}]"]
)
def test_what_is_advised_is_one_word_of_a_shell(word):
    assert shlex.split(pasted(word)) == [word]
    assert (pasted(word) == word) == (" " not in word)


def test_a_setting_within_null():
    cfg = OmegaConf.create({"env": {"mdp": {"rewards": None}}})
    line = "env.mdp.rewards is null; give it as a whole: 'env.mdp.rewards={X: ...}'"
    assert meant.unknown(cfg, "env.mdp.rewards.X") == line


def test_a_home_is_written_out_after_an_equals_sign_too(here, capsys, monkeypatch):
    """A shell leaves it there, and Hydra takes the sign for a removal."""
    monkeypatch.setenv("HOME", str(here))
    line = f"rl-lab: env.mdp.map={here}/maze.txt: cannot be read (No such file or directory)"
    assert rl_lab(capsys, "train", "env=four_rooms", "env.mdp.map=~/maze.txt")[1] == line
    monkeypatch.setenv("HOME", f"{here}/my home")
    assert arguments.split(["~env", "+a.b=~/x", "a=~b"]) == ([], ["~env", f"+a.b='{here}/my home/x'", "a=~b"])
    assert arguments.split(["a=~/x,~/y"]) == ([], ["a=~/x,~/y"]), "several are not one path"


def test_which_world_it_is_where_its_yaml_does_not_say_so():
    assert composition.world_key("cartpole", {"id": "Acrobot-v1"}) == "id"
    assert composition.world_key("cartpole", {"id": "CartPole-v1"}) is None
    assert composition.world_key("atari", {"game": "pong"}) == "game" and composition.world_key("windy", {}) is None


def test_commands(here, capsys):
    assert rl_lab(capsys, "-sc") == (2, 'rl-lab: -sc goes with a shell: eval "$(rl-lab -sc install=bash)"')
    assert rl_lab(capsys, "trian") == (2, "rl-lab: no command 'trian'; did you mean train?")
    assert rl_lab(capsys, "render", "run=nowhere") == (2, "rl-lab: no run folder nowhere")
    (here / "runs/compare").mkdir(parents=True)
    (here / "runs/windy").mkdir()
    assert rl_lab(capsys, "render", "runs/nothere") == (2, "rl-lab: no run folder runs/nothere")
    line = "rl-lab: no run folder runs/windi; did you mean runs/windy?"
    assert rl_lab(capsys, "render", "runs/windi") == (2, line)
    assert rl_lab(capsys, "render", "runs/compar") == (2, "rl-lab: no run folder runs/compar"), "it holds no run"
    line = "rl-lab: no run folder dqn_cartpole; did you mean experiment=dqn_cartpole?"
    assert rl_lab(capsys, "train", "dqn_cartpole") == (2, line)
    assert "--total-steps" in rl_lab(capsys, "train", "--total-steps", "100")[1]
    for typed in "record env=four_rooms", "play env=four_rooms", "evaluate policy=x env=four_rooms":
        line = "rl-lab: out=x.npz is for a folder; leave off the ending: out=x"
        assert rl_lab(capsys, *typed.split(), "out=x.npz") == (2, line)
    assert rl_lab(capsys, "compare", "~by") == (
        2,
        "rl-lab: ~by takes away nothing: there is no such value; leave it out",
    )
    line = "rl-lab: frame_size=99999x99999 must be height x width, such as 42x42, and needs frames=true"
    assert rl_lab(capsys, "record", "env=four_rooms", "frames=true", "frame_size=99999x99999") == (2, line)
    assert rl_lab(capsys, "compare", "by=1,2") == (
        2,
        "rl-lab: by=1,2 is several values, and compare takes one; a list is written [1,2]",
    )
    assert rl_lab(capsys, "doctor", "secnds=1") == (2, "rl-lab: no setting 'secnds'; did you mean seconds?")
    assert rl_lab(capsys, "compare", "metrik=x") == (2, "rl-lab: no setting 'metrik'; did you mean metric?")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("agent: {gama: 0.9}", "no setting 'agent.gama'; did you mean agent.gamma?"),
        ("nmae: mine", "no setting 'nmae'; did you mean name?"),
        ("checkpoint: {evry: 1}", "no setting 'checkpoint.evry'; did you mean checkpoint.every?"),
        ("loop: {total_step: 1}", "no setting 'loop.total_step'; did you mean loop.total_steps?"),
        (
            "agent: {network: {_target_: rl_lab.networks.torsos.mpl}}",
            "no rl_lab.networks.torsos.mpl; did you mean mlp?",
        ),
    ],
)
def test_a_misspelt_key_inside_a_yaml(here, capsys, text, line):
    path = here / "conf/experiment/mine.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(f"# @package _global_\n{text}\n")
    got = rl_lab(capsys, "train", "--config-dir", "conf", "experiment=mine", "tracker=none")
    assert got == (2, f"rl-lab: {line}")


def test_a_folder_that_is_no_run(here, capsys):
    (here / "empty").mkdir()
    for command in ("train", "evaluate", "render"):
        assert rl_lab(capsys, command, "run=empty") == (2, "rl-lab: empty is not a run folder: it has no config.yaml")
    (here / "empty/run").mkdir()
    (here / "empty/run/config.yaml").write_text("loop:\n  _target_: rl_lab.loops.training.train\n")
    line = "rl-lab: empty is not a run folder: it holds 1 run; name one: run=empty/run"
    assert rl_lab(capsys, "train", "run=empty") == (2, line)
    assert "empty/run/config.yaml" in rl_lab(capsys, "evaluate", "run=empty")[1]
    (here / "empty/study.yaml").write_text("jobs: []\n")
    line = "rl-lab: empty is a study, and no run; rl-lab study resume empty runs what is missing"
    assert rl_lab(capsys, "train", "run=empty") == (2, line)


def test_an_experiment_of_this_folder_is_found_by_its_flag(here, capsys):
    (here / "experiment").mkdir()
    (here / "experiment/mine.yaml").write_text("# @package _global_\ndefaults: [{override /agent: a2c}]\n")
    line = "rl-lab: no choice 'mine' for experiment; --config-dir=. takes experiment/mine.yaml of this folder"
    assert rl_lab(capsys, "train", "experiment=mine") == (2, line)
    assert rl_lab(capsys, "train", "--config-dir=.", "experiment=mine", "--cfg=job")[0] == 0


def test_a_folder_that_holds_something_else(here, capsys):
    (here / "mine").mkdir()
    (here / "mine/thesis.txt").write_text("years of work")
    got = rl_lab(capsys, "train", *TINY, "hydra.run.dir=mine")
    assert got == (2, f"rl-lab: hydra.run.dir={here}/mine is not empty; choose a new folder")
    assert [p.name for p in (here / "mine").iterdir()] == ["thesis.txt"]


@pytest.mark.slow
@pytest.mark.parametrize("starts", [3, pytest.param(8, marks=pytest.mark.slow)])
def test_of_many_starts_in_one_folder_one_trains_and_the_others_leave_it_alone(here, starts):
    command = [sys.executable, "-m", "rl_lab", "train", *TINY, "hydra.run.dir=one"]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(starts)]
    said = [process.communicate(timeout=120)[1].splitlines()[-1] for process in processes]
    assert sorted(process.returncode for process in processes) == [0, *[2] * (starts - 1)], said
    refusals = [line for line in said if line.startswith("rl-lab: ")]
    assert all("is being trained by another process" in line or "holds a run already" in line for line in refusals)
    assert '"state": "finished"' in Path("one/summary.json").read_text() and Path("one/checkpoint.pt").exists()


def test_a_run_goes_on_without_its_tracker(finished, capsys):
    assert rl_lab(capsys, "train", "run=run", "tracker=none", "loop.total_steps=800") == (
        0,
        "      rl-lab render run=run",
    )
    assert rl_lab(capsys, "train", "run=run", "tracker=nothing") == (
        2, "rl-lab: no choice 'nothing' for tracker; did you mean tracker=none?",
    )  # fmt: skip
    assert rl_lab(capsys, "train", "run=run", "agent=ppo")[1].startswith("rl-lab: agent=ppo would make it another run")
    assert rl_lab(capsys, "train", "run=run", "seed=0,1")[1].startswith(
        "rl-lab: seed=0,1 is several values, and a run "
    )


def test_a_run_is_not_overwritten(finished, capsys):
    before = (finished / "metrics.jsonl").read_bytes()
    code, line = rl_lab(capsys, "train", *TINY, "hydra.run.dir=run")
    path = finished.resolve()
    assert code == 2
    assert (
        line
        == f"rl-lab: {path} holds a run already; rl-lab train run={path} resumes it, or choose another hydra.run.dir"
    )
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_what_is_of_training_alone_is_no_change_to_an_evaluation(finished, capsys):
    line = "rl-lab: loop.eval_episodes=5 would be ignored, as evaluate trains nothing; leave it out"
    assert rl_lab(capsys, "evaluate", "run=run", "episodes=1", "loop.eval_episodes=5") == (2, line)


def test_a_resumed_run_keeps_its_config_when_the_new_one_is_impossible(finished, capsys):
    before = {p.name: p.read_bytes() for p in finished.iterdir()}
    got = rl_lab(capsys, "train", "run=run", "agent.batch_size=99999")
    assert got == (2, "rl-lab: agent.batch_size=99999 must be at most agent.replay.capacity=20000")
    assert {p.name: p.read_bytes() for p in finished.iterdir()} == before


def test_a_plan_is_made_in_one_go(here, capsys):
    assert (
        rl_lab(capsys, "train", "experiment=value_iteration_four_rooms", "tracker=none", "hydra.run.dir=plan")[0] == 0
    )
    rows = Path("plan/metrics.jsonl").read_bytes()
    assert rl_lab(capsys, "train", "run=plan")[0] == 0
    assert rl_lab(capsys, "train", "run=plan", "planner.gamma=0.5") == (
        2,
        "rl-lab: plan has finished, and planner.gamma=0.5 would change nothing: it was made in one go, and other "
        "settings are for a new run",
    )
    assert rl_lab(capsys, "train", "run=plan", "loop.film=false", "planner.gamma=0.5")[0] == 2
    Path("plan/plan.npz").unlink()
    assert rl_lab(capsys, "train", "run=plan", "planner.gamma=0.5")[0] == 2, "what is lost is made again, not another"
    assert Path("plan/metrics.jsonl").read_bytes() == rows and "gamma: 0.99" in Path("plan/config.yaml").read_text()
    assert rl_lab(capsys, "train", "run=plan")[0] == 0 and Path("plan/plan.npz").exists()


def damage(path: Path, how: str) -> None:
    match how:
        case "cut":
            path.write_bytes(path.read_bytes()[:-200])
        case "text":
            path.write_text("not a checkpoint")
        case "bit":
            with zipfile.ZipFile(path) as archive:
                largest = max(archive.infolist(), key=lambda info: info.file_size)
            raw = bytearray(path.read_bytes())
            raw[largest.header_offset + largest.file_size // 2] ^= 0xFF
            path.write_bytes(raw)
        case "pickle":
            torch.save({"format": "rl_lab checkpoint 1", "agent": os.system}, path)
        case "foreign":
            torch.save({"weights": torch.zeros(3)}, path)
        case "missing":
            path.unlink()


@pytest.mark.parametrize(
    ("how", "line"),
    [
        (
            "cut",
            "{} is cut short or is not a checkpoint; bring back a whole copy, or delete it with the summary.json and metrics.jsonl beside it, to train anew by run=",
        ),
        (
            "text",
            "{} is cut short or is not a checkpoint; bring back a whole copy, or delete it with the summary.json and metrics.jsonl beside it, to train anew by run=",
        ),
        ("bit", "{} is damaged: "),
        ("pickle", "{} is refused: it holds more than tensors, numbers and texts"),
        ("foreign", "{} is not a checkpoint of this library"),
    ],
)
def test_damaged_checkpoints(finished, capsys, how, line):
    path = finished / "checkpoint.pt"
    damage(path, how)
    rows = (finished / "metrics.jsonl").read_bytes()
    for command, where in (("train", path.resolve()), ("evaluate", path)):
        code, got = rl_lab(capsys, command, "run=run")
        assert code == 2 and got.startswith(f"rl-lab: {line.format(where)}")
    assert (finished / "metrics.jsonl").read_bytes() == rows


def test_of_several_runs_a_damaged_one_is_named_and_the_others_are_evaluated(finished, here, capsys):
    shutil.copytree("run", "other")
    damage(Path("other/checkpoint.pt"), "missing")
    Path("compare/1").mkdir(parents=True)  # as a pattern names it too
    Path("compare/1/index.html").touch()
    assert (
        cli.main("rl-lab", "rl", COMMANDS, ["evaluate", "other", "run", "compare/1", "episodes=1", "device=cpu"]) == 2
    )
    said = capsys.readouterr()
    line = "rl-lab: 1 of 2 runs left out: no checkpoint at other/checkpoint.pt; has the run saved one yet?"
    assert said.err.splitlines() == ["left out, as there is no run in it: compare/1", line] and " run " in said.out
    assert Path("run/evaluation.json").exists()
    assert rl_lab(capsys, "evaluate", "compare/1")[1].endswith("compare/1 is not a run folder: it has no config.yaml")


def test_the_checkpoint_of_a_run_is_not_its_folder(finished, capsys):
    line = "rl-lab: run/checkpoint.pt is a file of a run; name the run's folder: run=run"
    for command in "evaluate", "train":
        assert rl_lab(capsys, command, "run=run/checkpoint.pt") == (2, line)


def test_what_may_not_be_written_to_says_where_else(finished, here, capsys, monkeypatch):
    """As root no mode of a folder forbids anything: the system's answer is put in its place."""
    monkeypatch.setattr(os, "access", lambda path, mode, **_: mode != os.W_OK)
    line = (
        "rl-lab: run cannot be written to, and a run goes on in its own folder; copy it to where you may write, then "
    )
    assert rl_lab(capsys, "train", "run=run", "loop.total_steps=800") == (2, f"{line}rl-lab train run=<the copy>")

    def refused(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system", "x")

    monkeypatch.setattr(files, "fresh", refused)
    got = rl_lab(capsys, "train", "-m", *TINY, "seed=0,1")
    assert got == (2, "rl-lab: cannot write to runs: Read-only file system; choose another place (hydra.sweep.dir=)")
    monkeypatch.setattr(files, "replacing", refused)
    line = "rl-lab: cannot write to {}: Read-only file system; choose another place ({})"
    assert rl_lab(capsys, "export", "run=run", "to=x.pt2") == (2, line.format("x.pt2", "to="))
    monkeypatch.setattr(locks, "of_run", refused)
    assert rl_lab(capsys, "record", "run=run", "episodes=1", "out=y") == (2, line.format("y", "out="))


def test_a_damaged_checkpoint_of_a_finished_run_gives_way_as_the_line_says(finished, capsys):
    damage(finished / "checkpoint.pt", "cut")
    assert rl_lab(capsys, "train", "run=run")[1].endswith(
        "or delete it with the summary.json and metrics.jsonl beside it, to train anew by run="
    )
    for name in "checkpoint.pt", "summary.json", "metrics.jsonl":
        (finished / name).unlink()
    assert rl_lab(capsys, "train", "run=run")[0] == 0 and (finished / "checkpoint.pt").exists()


def test_several_runs_are_resumed_one_at_a_time(finished, capsys):
    shutil.copytree("run", "other")
    line = "rl-lab: rl-lab train resumes one run at a time, not 2; name one: run=run"
    assert rl_lab(capsys, "train", "-m", "run=run,other") == (2, line)
    assert rl_lab(capsys, "train", "run=run,absent") == (2, "rl-lab: no run folder absent")
    assert arguments.split(["run=run,other", "episodes=1"]) == ([Path("run"), Path("other")], ["episodes=1"])


def test_several_runs_of_one_set_of_values_are_none(here, capsys):
    line = (
        "rl-lab: -m runs every combination of values, and none are given: rl-lab train -m seed=0,1,2 "
        "experiment=<name>, or study=<name>, which holds them"
    )
    assert rl_lab(capsys, "train", "--multirun") == (2, line) and not [*here.iterdir()]


def test_a_run_is_not_composed_anew(finished, capsys):
    line = "rl-lab: experiment=dqn_taxi is for a new run, and this one keeps what it was composed of; leave out that or run="
    assert rl_lab(capsys, "train", "run=run", "experiment=dqn_taxi") == (2, line)


def test_a_link_to_itself_is_not_read(here, capsys):
    Path("loop").symlink_to("loop")
    line = "rl-lab: cannot read loop/config.yaml: Too many levels of symbolic links; remove the link"
    assert rl_lab(capsys, "evaluate", "loop")[1] in (line, "rl-lab: no run folder loop")


def test_where_nothing_may_be_written_a_command_speaks_of_no_run():
    words = "cannot write: No space left on device; make room, then type it again"
    with pytest.raises(UserError, match=words), plain_errors(Path(), "command/rl/evaluate", []):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_missing_checkpoint(finished, capsys):
    damage(finished / "checkpoint.pt", "missing")
    got = rl_lab(capsys, "evaluate", "run=run")
    assert got == (2, "rl-lab: no checkpoint at run/checkpoint.pt; has the run saved one yet?")


def test_a_checkpoint_of_another_experiment(finished, here, capsys):
    other = ["experiment=dqn_russell_norvig", *TINY[1:], "hydra.run.dir=other"]
    assert rl_lab(capsys, "train", *other)[0] == 0
    (finished / "checkpoint.pt").write_bytes((here / "other/checkpoint.pt").read_bytes())
    code, line = rl_lab(capsys, "train", "run=run", "loop.total_steps=800")
    assert (
        code == 2
        and f"{finished.resolve()}/checkpoint.pt is of another experiment: its agent does not fit this one" in line
    )


def test_a_checkpoint_that_lacks_what_was_learned(finished, capsys):
    """It was resumed with an agent that had learned nothing."""
    state = torch.load(finished / "checkpoint.pt", weights_only=True)
    del state["agent"]
    checkpoint.write(finished / "checkpoint.pt", state)
    code, line = rl_lab(capsys, "train", "run=run", "loop.total_steps=800")
    assert code == 2 and "its agent does not fit this one (it has no 'agent'); leave out the settings" in line


def test_a_run_of_the_other_lab_is_not_resumed(finished, capsys):
    assert cli.main("gen-lab", "gen", COMMANDS, ["train", "run=run", "loop.total_steps=800"]) == 2
    assert capsys.readouterr().err == (
        "gen-lab: run is a run of rl-lab: rl-lab train resumes it, rl-lab evaluate judges it, and from Python "
        "rl_lab.load opens it\n"
    )


@pytest.mark.parametrize(
    ("find", "put", "line"),
    [
        ("rl_lab.agents.dqn.DQN", "os.system", "agent._target_=os.system is refused: a run folder may call only what rl_lab/parts.py lists"),
        ("rl_lab.agents.dqn.DQN", "rl_lab.core.provenance.subprocess.run", "agent._target_=rl_lab.core.provenance.subprocess.run is refused: "),
        ("rl_lab.networks.torsos.linear", "rl_lab.envs.atari.np.load", "agent.network._target_=rl_lab.envs.atari.np.load is refused: "),
        ("torch.optim.Adam", "torch.load", "agent.optimizer._target_=torch.load is refused: a run folder may call only what rl_lab/parts.py lists"),
        ("rl_lab.networks.torsos.linear", "stable_baselines3.DQN.load", "agent.network._target_=stable_baselines3.DQN.load is refused: "),
        ("seed: 0", "seed: 0\nhydra: {callbacks: {x: {_target_: os.system}}}", "{}/config.yaml is refused: a run's config has no 'hydra'"),
        ("seed: 0", "seed: 0\ndefaults: [evil]", "{}/config.yaml is refused: a run's config has no 'defaults'"),
    ],
)  # fmt: skip
def test_a_tampered_config_calls_nothing(finished, capsys, find, put, line):
    path = finished / "config.yaml"
    assert find in path.read_text()
    path.write_text(path.read_text().replace(find, put))
    for command in ("train", "evaluate"):
        code, got = rl_lab(capsys, command, "run=run")
        assert code == 2 and got.startswith(f"rl-lab: {line.format('run')}"), got


def test_a_resumed_run_keeps_its_seed_and_says_when_nothing_is_left(finished, capsys):
    code, line = rl_lab(capsys, "train", "run=run", "seed=3")
    assert (code, line) == (2, "rl-lab: seed=... is for a new run: a resumed one keeps the seed that it began with")
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in finished.rglob("*") if p.is_file()}
    assert cli.main("rl-lab", "rl", COMMANDS, ["train", "run=run"]) == 0
    assert "nothing left to do: the run stands at step" in capsys.readouterr().err
    for change in "loop.total_steps=1", "agent.gamma=0.5", "tracker=csv":
        code, line = rl_lab(capsys, "train", "run=run", change)
        assert code == 2 and line.startswith(f"rl-lab: run has finished, and {change} would change nothing: "), line
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in finished.rglob("*") if p.is_file()} == before


def test_a_run_whose_folder_could_not_be_read_back_says_so_before_it_trains(here, capsys, monkeypatch):
    """It cannot be marked as one's own."""
    (here / "file").touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(here / "file"))
    unlisted = "agent.network._target_=rl_lab.networks.torsos._flat"
    assert cli.main("rl-lab", "rl", COMMANDS, ["train", *TINY, unlisted, "hydra.run.dir=run"]) == 0
    said = capsys.readouterr().err
    assert "this run imports rl_lab.networks.torsos, and there is no place for a key" in said
    assert said.index("there is no place for a key") < said.index("finished: run")
    assert cli.main("rl-lab", "rl", COMMANDS, ["evaluate", "run=run", "episodes=1"]) == 2
    assert f"{unlisted} is refused: a run folder may call only what" in capsys.readouterr().err


def test_what_does_not_fit_in_the_config_of_a_run_is_said_of_its_folder(finished, capsys):
    path = finished / "config.yaml"
    whole = path.read_text()
    path.write_text(re.sub(r"^(  )(gamma: )", r"\1gone: 1\n\1\2", whole, count=1, flags=re.MULTILINE))
    line = "rl-lab: run/config.yaml has agent.gone, and there is no such setting; ~agent.gone leaves it out"
    assert rl_lab(capsys, "train", "run=run", "loop.total_steps=500") == (2, line)
    assert rl_lab(capsys, "evaluate", "run=run") == (2, line)
    assert rl_lab(capsys, "evaluate", "run=run", "~agent.gone", "episodes=2")[0] == 0
    for find, put, line in [
        ("  learning_starts: ", "  learning_starts: x #", "agent.learning_starts=x must be a whole number"),
        ("\nthreads: ", "\nthreads: ${nix.da} #", "threads refers to ${nix.da}, and there is no setting nix"),
    ]:
        path.write_text(whole.replace(find, put, 1))
        for command in ["train", "run=run", "loop.total_steps=500"], ["evaluate", "run=run"]:
            assert rl_lab(capsys, *command) == (2, f"rl-lab: run/config.yaml: {line}")
    path.write_text(re.sub(r"^  gamma: .*\n", "", whole, count=1, flags=re.MULTILINE))
    line = "rl-lab: run/config.yaml lacks agent.gamma; give it a value: ++agent.gamma=..."
    assert rl_lab(capsys, "evaluate", "run=run") == (2, line)
    assert rl_lab(capsys, "train", "run=run", "loop.total_steps=500") == (2, line)
    assert rl_lab(capsys, "train", "run=run", "++agent.gamma=0.9", "loop.total_steps=500")[0] == 0


@pytest.mark.parametrize("text", ["agent: {gamma: 0.9}\n", "defaults: [override /agent: dqn]\n"])
def test_an_experiment_of_ones_own_says_that_it_is_of_the_whole_config(here, capsys, text):
    (here / "experiment").mkdir()
    (here / "experiment/mine.yaml").write_text(text)
    for given in [["experiment=mine"], ["-m", "experiment=dqn_cartpole,mine"], ["experiment=mine", "--help"]]:
        code, line = rl_lab(capsys, "train", "--config-dir", str(here), *given)
        assert (code, line) == (2, f"rl-lab: {here}/experiment/mine.yaml needs a first line: # @package _global_")
    for choice in "mine.yaml", '"mine"':
        code, line = rl_lab(capsys, "train", "--config-dir", str(here), f"experiment={choice}")
        assert (code, line) == (2, f"rl-lab: {here}/experiment/mine.yaml needs a first line: # @package _global_")
    for content, line in [
        (b"# @package _global_\n# caf\xe9\n", "is not UTF-8; save it as UTF-8"),
        (b"\xef\xbb\xbf# @package _global_\n", "begins with a byte order mark; save it as UTF-8 without one"),
    ]:
        (here / "experiment/mine.yaml").write_bytes(content)
        got = rl_lab(capsys, "train", "--config-dir", str(here), "experiment=mine")
        assert got == (2, f"rl-lab: {here}/experiment/mine.yaml {line}")
    (here / "experiment/mine.yaml").write_text(f"# @package _global_\n{text}")
    given = [*TINY[1:], "experiment=mine", "env=four_rooms", "hydra.run.dir=x"]
    assert cli.main("rl-lab", "rl", COMMANDS, ["train", "--config-dir", str(here), *given]) == 0


@pytest.mark.parametrize(
    ("reference", "line"),
    [
        ("${agent.gama}", "refers to a setting that is not there; did you mean agent.gamma?"),
        ("${oc.env:RL_LAB_NONE}", "refers to the environment variable RL_LAB_NONE, which is not set"),
        ("${none:3}", "refers to nothing: ${env.size} is the value of the setting env.size"),
        ("${.gama}", "refers to nothing: ${env.size} is the value of the setting env.size"),
        ("${oc.env:RL-LAB}", "refers to the environment variable RL-LAB, which is not set"),
        ("${agent.learning_starts}", "refers to itself; give it a value"),
    ],
)
def test_a_reference_to_nothing_is_named_as_it_was_typed(here, capsys, reference, line):
    typed = f"agent.learning_starts={reference}"
    assert rl_lab(capsys, "train", typed) == (2, f"rl-lab: {typed} {line}")


def test_a_reference_to_a_value_that_is_none_is_named_beside_it(here, capsys):
    typed = "loop.total_steps=${agent.gamma}"
    assert rl_lab(capsys, "train", typed) == (2, f"rl-lab: {typed}: agent.gamma=0.99 must be a whole number")


def test_a_name_that_is_not_utf_8_is_one_line(here, capsys, monkeypatch):
    name = os.fsdecode(b"run\xff")
    for given in [f"hydra.run.dir={name}"], [f"run={name}"]:
        code, line = rl_lab(capsys, "train", *given)
        assert code == 2 and line.endswith("run? is not UTF-8; give it another name (mv)"), line
    Path(name).mkdir()
    monkeypatch.chdir(name)
    code, line = rl_lab(capsys, "compare", "x")
    assert code == 2 and line.endswith("run? is not UTF-8; give it another name (mv)"), line


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_standard_output_is_one_line(here):
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "rl_lab", "experiments"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    line = "rl-lab: cannot write to standard output: No space left on device; make room, then type it again\n"
    assert (result.returncode, result.stderr) == (2, line)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_standard_error_ends_no_training(here):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "rl_lab", "train", *TINY, "hydra.run.dir=run"]
        assert subprocess.run(command, stderr=full).returncode == 0
    assert json.loads(Path("run/summary.json").read_text())["state"] == "finished"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_one_line(here, capsys):
    Path("closed").mkdir()
    Path("closed").chmod(0)
    for command in ["train", "run=closed"], ["evaluate", "run=closed/x"], ["study", "resume", "closed"]:
        code, line = rl_lab(capsys, *command)
        assert code == 2 and line.startswith("rl-lab: cannot read ") and line.endswith("; ask its owner for it"), line
    Path("closed").chmod(0o700)


def test_a_yaml_that_is_none_is_named_with_its_line(here, capsys):
    (here / "env").mkdir()
    (here / "env/broken.yaml").write_text("num_envs: 3\na: [1\n")
    code, line = rl_lab(capsys, "train", "env=broken", "--config-dir", str(here))
    assert code == 2 and "env/broken.yaml is no YAML: line 3" in line, line


def test_a_run_folder_may_note_how_many_processes_trained_it(finished, capsys):
    path = finished / "config.yaml"
    path.write_text(path.read_text() + "processes: 2\n")
    assert rl_lab(capsys, "train", "run=run")[0] == 0
    code, line = rl_lab(capsys, "train", "+processes=2")
    assert code == 2 and line.startswith("rl-lab: no setting 'processes'")


def test_an_unwritable_place(here, capsys):
    for path in "file", "runs":
        Path(path).write_text("")
    words = "is a file, and it should be a folder; rename it or choose another place"
    code, line = rl_lab(capsys, "train", *TINY, "hydra.run.dir=file/run")
    assert (
        code == 2 and line.startswith("rl-lab: cannot write to ") and line.endswith(f"file {words} (hydra.run.dir=...)")
    )
    code, line = rl_lab(capsys, "train", *TINY)
    assert (
        code == 2 and line.startswith("rl-lab: cannot write to ") and line.endswith(f"runs {words} (hydra.run.dir=...)")
    )
    line = f"rl-lab: cannot write to runs: runs {words} (hydra.sweep.dir=)"
    assert rl_lab(capsys, "train", "-m", *TINY, "seed=0,1") == (2, line)
    code, line = rl_lab(capsys, "record", "env=four_rooms", "episodes=1")
    assert code == 2 and line.endswith(f": runs {words} (out=)")
    assert sorted(path.name for path in here.iterdir()) == ["file", "runs"]


def test_a_full_disk_keeps_the_checkpoint_before(finished):
    """A limit on the size of files stands for a full disk: what no longer fits is refused by the system."""
    before = (finished / "checkpoint.pt").read_bytes()

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before), len(before)))

    command = [sys.executable, "-m", "rl_lab", "train", "run=run", "loop.total_steps=4000"]
    result = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit)
    assert result.returncode == 2, result.stderr
    assert result.stderr.splitlines()[-1].startswith("rl-lab: cannot write")
    assert "make room" in result.stderr
    assert "Traceback" not in result.stderr
    assert (finished / "checkpoint.pt").read_bytes() == before


def test_nan_stops_the_run_at_once_and_keeps_what_was_good(here, capsys):
    overrides = [
        "experiment=dqn_four_rooms",
        "tracker=none",
        "device=cpu",
        "loop.eval_episodes=1",
        "agent.learning_starts=100",
    ]
    overflow = [
        "env.mdp.living_reward=1e38",
        "env.num_envs=1",
        "env.time_limit=3",
    ]  # a batch of 256 sums beyond float32
    code, line = rl_lab(capsys, "train", *overrides, *overflow, "hydra.run.dir=run")
    assert code == 2
    assert line.startswith("rl-lab: dqn/loss is ") and " at step " in line and "run/checkpoint.pt" in line
    state = torch.load("run/checkpoint.pt", weights_only=True)
    assert all(x.isfinite().all() for x in state["agent"]["online"].values())
    assert '"state": "failed"' in Path("run/summary.json").read_text()


def test_a_fault_of_ours_is_a_whole_traceback(here):
    code = (
        "import sys; from rl_lab.loops import episodes; episodes.Episodes.add = lambda *a: 1 / 0; from rl_lab.__main__ import main; "
        f"sys.argv = ['rl-lab', 'train', *{TINY!r}]; sys.exit(main())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    assert "Traceback" in result.stderr and result.stderr.strip().endswith("ZeroDivisionError: division by zero")


@pytest.mark.slow
@pytest.mark.parametrize("silent", [False, True])
def test_a_key_but_no_network_is_no_error(here, silent):
    """One line, then offline: where nothing listens, and where something listens but never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        if not silent:
            server.close()
        clean = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}  # other tests' service among them
        env = clean | {"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": f"http://127.0.0.1:{port}"}
        arguments = [a for a in TINY if "tracker" not in a] + ["tracker.init_timeout=2"]
        command = [sys.executable, "-m", "rl_lab", "train", *arguments]
        result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert (
        result.stderr.count("W&B did not answer within 2 s; this run is kept offline (wandb sync sends it later)") == 1
    )
    assert list(here.glob("runs/wandb/offline-run-*/*.wandb"))


def test_control_c_while_imports_run_is_no_traceback(here):
    """The moment is when our first module is there, and torch is not."""
    code = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # which a shell turns off in the background
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'omegaconf':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from rl_lab.__main__ import main\n"
        f"sys.argv = ['rl-lab', 'train', *{TINY!r}]\n"
        "sys.exit(main())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "Traceback" not in result.stderr and result.returncode == 130


def test_a_run_whose_reader_is_gone_saves_at_ctrl_c(here):
    """As under `2>&1 | tee log`, where Ctrl-C ends tee as well."""
    code = f"from rl_lab.__main__ import main; import sys; sys.argv = ['rl-lab', 'train', *{TINY!r}, *sys.argv[1:]]; sys.exit(main())"
    given = ["loop.total_steps=50_000_000", "loop.eval_every=null", "hydra.run.dir=run", "checkpoint.every=1000"]
    reading, writing = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", code, *given], stdout=writing, stderr=writing)
    os.close(writing)
    until = time.monotonic() + 60
    while not (here / "run/metrics.jsonl").exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.1)
    os.close(reading)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    assert (
        json.loads((here / "run/summary.json").read_text())["state"] == "stopped"
        and (here / "run/checkpoint.pt").exists()
    )


def test_one_thing_is_said_in_the_singular():
    assert [counted(n, "steps of 3 seeds") for n in (0, 1, 2_000)] == [
        "0 steps of 3 seeds",
        "1 step of 3 seeds",
        "2,000 steps of 3 seeds",
    ]
    assert counted(1.2, "episodes") == "1 episode"


def test_what_holds_the_word_is_near_it():
    assert (
        nearest("vae", ["dcgan_digits", "vae_conv_mnist", "vae_digits"])
        == "; did you mean vae_digits or vae_conv_mnist?"
    )
    assert nearest("vae_digit", ["vae_digits", "vae_digits_small"]) == "; did you mean vae_digits?"
    assert nearest("xyz", ["vae", "gan"]) == "; choose from gan, vae"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="whoever may read all becomes who may not")
def test_what_may_not_be_read_is_no_fault_of_writing(tmp_path):
    shut, inside = tmp_path / "shut.pt", tmp_path / "closed" / "study.yaml"
    shut.write_text("x")
    inside.parent.mkdir()
    inside.write_text("x")
    shut.chmod(0)
    inside.parent.chmod(0)
    open_to_all = [path for path in tmp_path.parents if path != path.parent and not path.stat().st_mode & 0o001]
    modes = {path: path.stat().st_mode for path in (tmp_path, *open_to_all)}
    for path in modes:
        path.chmod(modes[path] | 0o555)
    os.seteuid(65534)
    try:
        for path in shut, inside:
            words = rf"^cannot read {path}: Permission denied"
            with pytest.raises(UserError, match=words), plain_errors(tmp_path, "rl", []):
                path.read_text()
        with (
            pytest.raises(UserError, match=r"^cannot write .*new: Permission denied"),
            plain_errors(tmp_path, "rl", []),
        ):
            (tmp_path / "new").write_text("x")
    finally:
        os.seteuid(0)
        for path, mode in modes.items():
            path.chmod(mode)
