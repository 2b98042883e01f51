"""What experiments of rl_lab are made of: everything that a run folder from anywhere may call."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from rl_lab.core.parts import TORCH, Parts, moved, parts, plain_numbers, word

DOTTED = r"[A-Za-z]\w*(\.[A-Za-z]\w*)*"  # the name of a module
# Of gymnasium.wrappers those that neither write nor open anything.
WRAPPERS = {"AddRenderObservation", "ClipReward", "DelayObservation", "DiscretizeAction", "DiscretizeObservation",
            "DtypeObservation", "FilterObservation", "FlattenObservation", "FrameStackObservation",
            "GrayscaleObservation", "MaxAndSkipObservation", "NormalizeObservation", "NormalizeReward",
            "RecordEpisodeStatistics", "RepeatAction", "RescaleObservation", "ReshapeObservation", "ResizeObservation",
            "StickyAction", "TimeAwareObservation", "TimeLimit"}  # fmt: skip


def of_gymnasium(key: str, value: Any) -> str | None:
    """An environment known by its name; a path among the options would be read. Modules are looked at elsewhere."""
    if key == "id" and not re.fullmatch(rf"({DOTTED}:)?(?!rl_lab/)([\w.-]+/)?[\w.-]+", str(value)):
        return "it must be the name of a Gymnasium environment, such as CartPole-v1; ours have an env= of their own"
    if key == "imports" and not (isinstance(value, list) and all(re.fullmatch(DOTTED, str(x)) for x in value)):
        return "it must be a list of modules, such as [minigrid]"
    if key == "wrappers":
        entries = value if isinstance(value, list) else [None]
        return next((reason for entry in entries if (reason := _wrapper(entry))), None)
    if key == "options":
        return _options(value)
    return None


def _wrapper(entry: Any) -> str | None:
    """A name, or {name: settings}: of Gymnasium's a harmless one, or of a module that must be allowed by name."""
    name, settings = next(iter(entry.items())) if isinstance(entry, dict) and len(entry) == 1 else (entry, {})
    if not (isinstance(name, str) and (name in WRAPPERS or ("." in name and re.fullmatch(DOTTED, name)))):
        return f"a wrapper is one of {', '.join(sorted(WRAPPERS))}, or of a module"
    return _options(settings or {})


def of_env(settings: Mapping[str, Any]) -> Iterator[str]:
    """The modules that the settings of a Gymnasium environment import: of its id, of `imports`, of its wrappers."""
    module, colon, _ = str(settings.get("id")).rpartition(":")
    if colon:
        yield module
    typed = settings.get("imports") or []
    for found in typed if isinstance(typed, list) else [typed]:
        yield str(found)
    wrappers = settings.get("wrappers")
    for entry in wrappers if isinstance(wrappers, list) else []:
        name = entry.get("_target_", next(iter(entry), "")) if isinstance(entry, dict) else entry
        if "." in str(name):
            yield str(name).rpartition(".")[0]


def _options(value: Any) -> str | None:
    if isinstance(value, dict):
        if odd := {str(key) for key in value} & {"wrappers", "vector_kwargs", "world", "entry_point", "render_mode"}:
            return f"'{sorted(odd)[0]}' is no option of an environment"
        return next((reason for item in value.values() if (reason := _options(item))), None)
    if isinstance(value, list):
        return next((reason for item in value if (reason := _options(item))), None)
    return "an option may be a name, and no path" if isinstance(value, str) and not word(value) else None


def of_sb3(key: str, value: Any) -> str | None:
    """Numbers, the policy by its name, and layers; not an env, a place for logs or the class of a buffer."""
    if key == "policy" or isinstance(value, str):
        known = key in ("policy", "train_freq", "learning_rate") and word(value)
        return None if known else "it must be a number, or a policy's name"
    if key == "policy_kwargs" and isinstance(value, dict):
        return next((reason for k, v in value.items() if (reason := _policy_kwargs(k, v))), None)
    if isinstance(value, dict | list) and key != "train_freq":
        return "it must be a number"
    return None


def _policy_kwargs(key: str, value: Any) -> str | None:
    if isinstance(value, dict) and "_target_" not in value and key in ("net_arch", "optimizer_kwargs"):
        return next((reason for v in value.values() if (reason := plain_numbers(key, v))), None)
    return None if isinstance(value, dict) and "_target_" in value else plain_numbers(key, value)


ALLOWED = {
    **TORCH,
    # loops
    **parts("rl_lab.loops.training", "train"),
    **parts("rl_lab.loops.planning", "plan"),
    **parts("rl_lab.loops.crew", "train"),
    **parts("rl_lab.loops.overlapped", "train"),
    **parts("rl_lab.loops.seeds.training", "train"),
    **parts("rl_lab.loops.fitting", "fit_q"),
    **parts("rl_lab.loops.sb3", "train_sb3"),
    **parts("rl_lab.loops.demonstrated", "infer"),
    **parts("rl_lab.loops.reward_design", "design"),
    **parts("rl_lab.loops.preferences", "train"),
    # worlds
    **parts("rl_lab.envs.tabular.stepper", "MDPEnv"),
    **parts("rl_lab.envs.tabular.gridworld", "gridworld"),
    **parts("rl_lab.envs.tabular.mazes", "maze", "scattered"),
    **parts("rl_lab.envs.tabular.classics", "short_corridor", "gambler", "car_rental"),
    **parts("rl_lab.envs.tabular.tables", "file_env", "mdp_file"),
    **parts("rl_lab.envs.tabular.tables", "toy_text", "toy_text_env", judge=of_gymnasium),
    **parts("rl_lab.envs.gym", "Gym", judge=of_gymnasium),
    **parts("rl_lab.envs.atari", "Atari"),
    **parts("rl_lab.envs.collect.world", "Collect"),
    **parts("rl_lab.envs.classic.stepper", "ClassicEnv"),
    **parts("rl_lab.envs.classic.physics", "CartPole", "Acrobot", "MountainCar"),
    # planners
    **parts("rl_lab.planning", "value_iteration", "q_iteration", "policy_iteration", "modified_policy_iteration",
            "policy_evaluation", "prioritised_sweeping", "linear_programming", "finite_horizon"),
    # what is wanted
    **parts("rl_lab.wanted.inverse", "maximum_entropy", "linear_programme"),
    **parts("rl_lab.wanted.imitation", "behaviour_cloning", "dagger"),
    **parts("rl_lab.wanted.reward_design", "reward_design"),
    **parts("rl_lab.wanted.preferences.predictors", "Ensemble"),
    **parts("rl_lab.wanted.preferences.teachers", "Oracle"),
    **parts("rl_lab.wanted.preferences.people", "People", "Recorded"),
    # agents and what they are composed of
    **parts("rl_lab.agents.dqn", "DQN"),
    **parts("rl_lab.agents.a2c", "A2C"),
    **parts("rl_lab.agents.ppo", "PPO"),
    **parts("rl_lab.agents.q_learning", "QLearning"),
    **parts("rl_lab.agents.actor_critic", "ActorCritic"),
    **parts("rl_lab.agents.reinforce", "Reinforce", "Nothing", "RunningMean", "Value"),
    **parts("rl_lab.agents.fitted_q", "LeastSquares", "ExtraTrees", "Network"),
    **parts("rl_lab.agents.collectors", "Greedy", "Optimal"),
    **parts("rl_lab.agents.random", "Random"),
    **parts("rl_lab.agents.vpn.learner", "VPN"),
    **parts("rl_lab.agents.vpn.model", "ValuePrediction", "GridEncoder", "FrameEncoder", "VectorEncoder"),
    **parts("rl_lab.agents.vpn.baselines", "ActionValue", "ObservationPrediction"),
    **parts("rl_lab.agents.vpn.replay", "Rollouts"),
    **parts("rl_lab.agents.values", "Mean", "Categorical", "Quantiles"),
    **parts("rl_lab.networks.torsos", "linear", "mlp", "cnn", "nature_cnn"),
    **parts("rl_lab.networks.tiles", "tiles", "constant"),
    **parts("rl_lab.agents.exploration", "Linear"),
    **parts("rl_lab.memory", "Replay", "Priorities"),
    **parts("rl_lab.networks.optimizers", "RMSpropTF", "CentredRMSprop"),
    **parts("gen_lab.trained.encoding", "Encoded"),  # a trained autoencoder as an agent's eyes
    **parts("stable_baselines3", "A2C", "DQN", "PPO", judge=of_sb3),
    **parts("stable_baselines3.common.sb2_compat.rmsprop_tf_like", "RMSpropTFLike", judge=plain_numbers),
}  # fmt: skip

MOVED = {
    **moved("rl_lab.loops", "rl_lab.loops.training", "train"),
    **moved("rl_lab.loops", "rl_lab.loops.planning", "plan"),
    **moved("rl_lab.crew", "rl_lab.loops.crew", "train"),
    **moved("rl_lab.seeds", "rl_lab.loops.seeds.training", "train"),
    **moved("rl_lab.fitted", "rl_lab.loops.fitting", "fit_q"),
    **moved("rl_lab.baselines.sb3", "rl_lab.loops.sb3", "train_sb3"),
    **moved("rl_lab.envs.mdp", "rl_lab.envs.tabular.stepper", "MDPEnv"),
    **moved("rl_lab.envs.gridworld", "rl_lab.envs.tabular.gridworld", "gridworld"),
    **moved("rl_lab.envs.mazes", "rl_lab.envs.tabular.mazes", "maze", "scattered"),
    **moved("rl_lab.envs.classics", "rl_lab.envs.tabular.classics", "short_corridor", "gambler", "car_rental"),
    **moved("rl_lab.envs.tables", "rl_lab.envs.tabular.tables", "file_env", "mdp_file", "toy_text", "toy_text_env"),
    **moved("rl_lab.envs.collect", "rl_lab.envs.collect.world", "Collect"),
    **moved("rl_lab.networks", "rl_lab.networks.torsos", "linear", "mlp", "nature_cnn"),
    **moved("rl_lab.features", "rl_lab.networks.tiles", "tiles", "constant"),
    **moved("rl_lab.values", "rl_lab.agents.values", "Mean", "Categorical", "Quantiles"),
    **moved("rl_lab.exploration", "rl_lab.agents.exploration", "Linear"),
    **moved("rl_lab.optimizers", "rl_lab.networks.optimizers", "RMSpropTF", "CentredRMSprop"),
    **moved("rl_lab.wanted.predictors", "rl_lab.wanted.preferences.predictors", "Ensemble"),
    **moved("rl_lab.wanted.teachers", "rl_lab.wanted.preferences.teachers", "Oracle"),
    **moved("rl_lab.wanted.people", "rl_lab.wanted.preferences.people", "People", "Recorded"),
    **moved("gen_lab.encoding", "gen_lab.trained.encoding", "Encoded"),
}

GONE = {
    "rl_lab.networks.torsos.nature_cnn": frozenset({"bf16"}),  # precision=bf16, of the whole run
    "rl_lab.envs.collect.world.Collect": frozenset({"gamma"}),  # the world's; learners know their own
    "rl_lab.memory.Replay": frozenset({"gamma", "max_abs_reward"}),  # DQN's own stood in their place
}

YOUNGER: dict[str, dict[str, Any]] = {  # settings that older run folders leave out, and what they mean by it
    "rl_lab.loops.training.train": {"eval_drawn": 0, "stop_at": None},
    "rl_lab.loops.crew.train": {"eval_drawn": 0, "stop_at": None},
    "rl_lab.loops.sb3.train_sb3": {"eval_drawn": 0, "stop_at": None},
    "rl_lab.loops.preferences.train": {"hidden_ends": False, "end_reward": -1.0},
    "rl_lab.wanted.preferences.predictors.Ensemble": {"adapt": 1.0},
    "rl_lab.loops.planning.plan": {"film": False, "log_every": 1},
    "rl_lab.envs.tabular.stepper.MDPEnv": {"obs": "one_hot"},
    "rl_lab.envs.tabular.tables.file_env": {"obs": "one_hot"},
    "rl_lab.envs.tabular.tables.toy_text_env": {"obs": "one_hot"},
    "rl_lab.envs.tabular.gridworld.gridworld": {"rewards": None, "living_reward": 0.0, "noise": 0.0, "slip": "sideways",
                                                "convention": "transition", "gamma": 0.99},
    "rl_lab.envs.gym.Gym": {"channels": None, "imports": [], "wrappers": [], "planes": False, "time_limit": None,
                            "normalise_obs": False, "normalise_reward": None, "clip_obs": None, "frame_stack": 1},
    "rl_lab.envs.atari.Atari": {"num_threads": 0, "height": 84, "width": 84, "point_terminal": False},
    "rl_lab.planning.value_iteration": {"epsilon": 1e-9, "stop": "value", "sweep": "synchronous", "initial": "zero",
                                        "max_sweeps": 100_000, "check_every": 1},
    "rl_lab.planning.prioritised_sweeping": {"every": 1},
    "rl_lab.agents.dqn.DQN": {"value": None, "target_mix": 1.0, "epsilon_spread": 0.0, "eval_epsilon": 0.0,
                              "dueling": False, "stream_units": 0, "noisy": 0.0, "decay_steps": 0,
                              "gather_steps": 0},
    "rl_lab.agents.a2c.A2C": {"bootstrap": True, "standardise": False, "decay_steps": 0, "separate_value": False,
                              "forward_again": False, "gather_steps": 0, "decay_entropy": False},
    "rl_lab.agents.ppo.PPO": {"target_kl": None, "decay_floor": 0.0, "decay_entropy": False, "gather_steps": 0,
                              "decoupled": False, "adaptive_kl": None, "standardise_over": "minibatch"},
    "rl_lab.agents.q_learning.QLearning": {"reward_scale": 1.0, "normalise": False, "gather_steps": 0,
                                            "eval_epsilon": 0.0},
    "rl_lab.agents.vpn.learner.VPN": {"walks_per_sequence": 1, "walks_cross_ends": False, "replay": None},
    "rl_lab.memory.Replay": {"n_step": 1, "on_host": False, "priorities": None},
    "rl_lab.agents.exploration.Linear": {"delay": 0},
    # of what is also typed: agent.network._target_=..., agent.optimizer._target_=...
    "rl_lab.networks.torsos.mlp": {"hidden": [64, 64]},
    "rl_lab.networks.tiles.tiles": {"tilings": 8, "tiles": 8},
    "rl_lab.networks.optimizers.RMSpropTF": {"alpha": 0.99, "eps": 1e-5},
    "rl_lab.networks.optimizers.CentredRMSprop": {"decay": 0.95, "eps": 1e-5},
    "gen_lab.trained.encoding.Encoded": {"hidden": []},
}  # fmt: skip

IMPORTS = {
    "rl_lab.envs.gym.Gym": of_env,
    "rl_lab.envs.tabular.tables.toy_text": of_env,
    "rl_lab.envs.tabular.tables.toy_text_env": of_env,
}

EXACT = ("rl_lab.envs.tabular.", "rl_lab.envs.classic.", "rl_lab.agents.collectors.", "rl_lab.agents.fitted_q.",
         "rl_lab.memory.Priorities", "rl_lab.wanted.")  # fmt: skip

THEN = {
    "": ("rl-lab evaluate run={run} episodes=100", "rl-lab render run={run}"),
    "rl_lab.loops.seeds.training.train": ("rl-lab compare {run}", "rl-lab render run={run}/seed{seed}"),
}

INSTEAD = {"loop.data": ("loop.random_steps", "loop.demonstrations", "loop.expert", "loop.temperature")}


def several(steps: int) -> bool:
    return steps > 1


NEEDS = {
    "loop.temperature": ("loop.expert", "soft"),
    "loop.candidates": ("loop.select", "disagreement"),
    "loop.end_reward": ("loop.hidden_ends", bool),
    "agent.standardise_over": ("agent.standardise", bool),
    "agent.decay_floor": ("agent.decay_steps", bool),
    "agent.decay_entropy": ("agent.decay_steps", bool),
    "agent.decay_clip": ("agent.decay_steps", bool),
    "agent.network.standardise": ("agent.gather_steps", bool),
    "agent.gather_steps": ("agent.network.standardise", bool),
    "agent.lambda_": ("agent.rollout_length", several),
    "agent.exact_discount": ("agent.credit", "reward_to_go"),
    "agent.walks_per_sequence": ("agent.random_steps", bool),
    "agent.walks_cross_ends": ("agent.random_steps", bool),
    "loop.predictor.batch_size": ("loop.predictor.optimizer", bool),
}

REDUCED = "rl_lab.networks.torsos.cnn", "rl_lab.networks.torsos.nature_cnn"

CAPTURES = ("rl_lab.loops.training.train",)

PARTS = Parts("rl_lab/parts.py", ALLOWED, MOVED, GONE, YOUNGER, IMPORTS, then=THEN,
              films="rl_lab.envs.abilities.can_be_filmed", captures=CAPTURES, instead=INSTEAD, needs=NEEDS,
              reduced=REDUCED, exact=EXACT)  # fmt: skip
