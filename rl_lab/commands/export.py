"""The greedy policy of a run as a file that needs nothing of this lab: a program of torch.export, or ONNX."""

import contextlib
import importlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.export import Dim, ExportedProgram

from rl_lab.agents.planned import Planned
from rl_lab.core import files
from rl_lab.core.errors import UserError, brief, counted, pasted
from rl_lab.core.launching.named import the_one
from rl_lab.core.randomness import generator
from rl_lab.envs.abilities import Normalising
from rl_lab.playing.player import Player, load

COMPARED = 1_000  # observations on which the file must act as the agent does
DRAWING = {"sampled_eval": False, "eval_epsilon": 0.0}  # settings by which evaluations draw: the export is the mode

Run = Callable[[Tensor], tuple[Tensor, Tensor]]  # obs [N, ...] -> actions [N], bars [N, A]


class Greedy(nn.Module):
    """obs [N, ...], as the environment gives them -> actions int64 [N], and probabilities or action values [N, A]."""

    def __init__(self, agent: Any):
        super().__init__()
        self.agent, self.is_model = agent, hasattr(agent, "model")
        within = vars(agent.model if self.is_model else agent)  # of a model of Stable-Baselines3
        self.parts = nn.ModuleDict({name: part for name, part in within.items() if isinstance(part, nn.Module)})
        self.requires_grad_(False)  # its answers are numbers, which NumPy takes

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        bars = self.agent.view(obs).bars
        return (bars.argmax(-1) if self.is_model else self.agent.act(obs, greedy=True)), bars


def export(runs: Sequence[Path], *, to: str | None, changes: Sequence[str] = ()) -> None:
    """Writes the file, of the run with `changes` to its settings, reads it back and compares what it does.

    Raises UserError.
    """
    run = the_one(runs, "export one run: rl-lab export run=<folder> to=policy.pt2")
    kind = Path(to or "").suffix
    if to is None:
        raise UserError(f"where to? rl-lab export {pasted(f'run={run}')} to=policy.pt2, or to=policy.onnx")
    if kind not in KINDS:
        raise UserError(f"to={to} must end in .pt2, for torch, or in .onnx: rl-lab export run=<folder> to=policy.pt2")
    write, read = KINDS[kind]
    if kind == ".onnx":
        check_onnx(to)
    path = files.home(to)
    files.try_place(path, "to=...")
    player = load(run, max_envs=16, device="cpu", changes=changes)
    try:
        still(player)
        seen = observations(player, COMPARED)
        program, batch = traced(player, seen)
        about = described(player, batch)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _quiet():
            files.write(path, write(program, about))
            same = compared(player, seen, read(path), batch)
    except OSError as error:
        raise files.unwritten(to, error, "to=") from error
    finally:
        player.env.close()
    words = "" if batch is None else ", one observation at a time"
    if isinstance(player.env, Normalising) and player.env.statistics.obs:
        words += "; it takes observations normalised, by the mean and deviation in the file's own description"
    print(f"{path}: {player.words}; the same actions on {same:,} of {counted(len(seen), 'observations')}{words}")
    if same < len(seen):
        raise UserError(f"{path} is not quite the policy of {run}: it acts otherwise on the rest")


def still(player: Player) -> None:
    """Makes the agent draw nothing from here on. Raises UserError where there is no network and no table."""
    agent = player.agent
    within = vars(getattr(agent, "model", agent)).values()
    if not isinstance(agent, Planned) and not any(
        isinstance(part, nn.Module) or (isinstance(part, Tensor) and part.is_floating_point()) for part in within
    ):
        raise UserError(f"{player.folder}: {type(agent).__name__} has no network and no table to export")
    for name, value in DRAWING.items():
        if getattr(agent, name, value) != value:
            print(f"agent.{name} is left out: the export takes the best action, and draws none")
            setattr(agent, name, value)


@torch.no_grad()
def observations(player: Player, count: int) -> Tensor:
    """[count, ...], of episodes in which half of the actions are random, so that the file is also compared where the
    agent itself would not go.
    """
    env, rng = player.env, generator(0, player.env.device)
    obs, seen = env.reset(0), torch.empty(0, *env.spec.obs_shape, dtype=env.spec.obs_dtype)
    while len(seen) < count:
        seen = torch.cat([seen, obs])
        drawn = torch.randint(env.spec.num_actions, (len(obs),), generator=rng)
        takes = torch.rand(len(obs), generator=rng) < 0.5
        obs = env.step(torch.where(takes, drawn, player.act(obs))).obs
    return seen[:count]


def traced(player: Player, seen: Tensor) -> tuple[ExportedProgram, int | None]:
    """The program, and the size of batch it takes; None: any. Raises UserError."""
    policy = Greedy(player.agent).eval()
    ways: list[tuple[int | None, dict[str, Any]]] = [(None, {"dynamic_shapes": ({0: Dim("batch")},)}), (1, {})]
    for batch, shapes in ways:
        try:
            with _quiet(), torch.no_grad():
                return torch.export.export(policy, (seen[: batch or 2].clone(),), strict=False, **shapes), batch
        except Exception as error:  # of many kinds: what the agent does cannot be written down
            fault = error
    words = brief(fault)
    raise UserError(f"{type(player.agent).__name__} cannot be exported ({type(fault).__name__}: {words})") from fault


def described(player: Player, batch: int | None) -> dict[str, Any]:
    """What the file says of itself."""
    spec = player.env.spec
    with torch.no_grad():
        kind = player.view(player.env.observe()).kind
    obs: dict[str, Any] = {"shape": list(spec.obs_shape), "dtype": str(spec.obs_dtype).removeprefix("torch.")}
    obs |= player.env.statistics.described() if isinstance(player.env, Normalising) else {}
    return {"run": player.name, "step": player.step, "unit": player.unit, "actions": list(spec.actions), "obs": obs,
            "batch": batch, "outputs": ["action", kind.replace(" ", "_")]}  # fmt: skip


def compared(player: Player, seen: Tensor, run: Run, batch: int | None) -> int:
    """On how many observations the file acts as the agent does."""
    return sum(int((run(part)[0] == player.act(part)).sum()) for part in seen.split(batch or len(seen)))


# -- the two kinds of file


def pt2(program: ExportedProgram, about: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={"about.json": json.dumps(about)})
    return file.getvalue()


def of_pt2(path: Path) -> Run:
    module: Run = torch.export.load(str(path)).module()
    return module


def check_onnx(to: str) -> None:
    """Raises UserError where it is not installed."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(f"to={to} needs {name}: pip install rl-lab[onnx]") from error


def onnx(program: ExportedProgram, about: dict[str, Any]) -> bytes:
    names: dict[str, Any] = {"input_names": ["obs"], "output_names": about["outputs"]}
    made = torch.onnx.export(program, dynamo=True, verbose=False, **names)
    assert made is not None
    model = made.model_proto
    for key, value in about.items():
        model.metadata_props.add(key=key, value=json.dumps(value))
    data: bytes = model.SerializeToString()
    return data


def of_onnx(path: Path) -> Run:
    runtime = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(obs: Tensor) -> tuple[Tensor, Tensor]:
        action, bars = (torch.from_numpy(np.asarray(x)) for x in session.run(None, {"obs": obs.numpy()}))
        return action, bars

    return run


KINDS: dict[str, tuple[Callable[[ExportedProgram, dict[str, Any]], bytes], Callable[[Path], Run]]]
KINDS = {".pt2": (pt2, of_pt2), ".onnx": (onnx, of_onnx)}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences torch, and keeps distributions from checking their arguments, which no exported program can do."""
    checks = Distribution._validate_args
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        Distribution.set_default_validate_args(False)
        try:
            yield
        finally:
            Distribution.set_default_validate_args(checks)
            logging.disable(logging.NOTSET)
