"""Planning decisions a second on Collect, batched against the plain recursion; and the share of time that plans take.

python tests/bench/vpn.py [--depths 1 3 5] [--envs 1 64 1024] [--roots 256] [--seconds 2] [--device cpu]    one thread.
The recursion imagines one option of one state at a time, as the paper writes it. A share is of learning by VPN(d) on
`--learning` environments: acting, stepping, bootstrapping, and gradient steps with random walks.
"""

import argparse
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from rl_lab.agents.vpn.learner import VPN
from rl_lab.agents.vpn.model import GridEncoder, ValuePrediction
from rl_lab.agents.vpn.planner import widths
from rl_lab.types import Transition

sys.path.insert(0, str(Path(__file__).parents[1]))
from stated import stated

Collect, vpn = stated("env/collect"), stated("agent/vpn")

GAMMA, BRANCH, BRANCH_DEPTH = 0.98, 4, 3


def recursion(net: ValuePrediction, state: torch.Tensor, branches: tuple[int, ...]) -> torch.Tensor:
    """Q^d(s, o) [A] of one state [1, C, H, W]; -inf of options not looked into."""
    seen = [net.imagine(state, torch.tensor([o], device=state.device)) for o in range(net.num_actions)]
    q = torch.cat([x.reward + GAMMA**x.duration * x.value for x in seen])
    if len(branches) == 1:
        return q
    d, deep = len(branches), torch.full_like(q, -torch.inf)
    for o in q.topk(min(branches[0], len(q))).indices.tolist():
        below = recursion(net, seen[o].state, branches[1:]).max()
        deep[o] = (seen[o].reward + GAMMA ** seen[o].duration * (seen[o].value / d + (d - 1) / d * below)).squeeze()
    return deep


def clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def rate(calls: list[Callable[[], int]], device: torch.device, seconds: float) -> float:
    """Decisions a second; each call makes as many as it returns, and they take turns until the time is up."""
    calls[0]()
    made, i, start = 0, 0, clock(device)
    while (spent := clock(device) - start) < seconds:
        made, i = made + calls[i % len(calls)](), i + 1
    return made / spent


@torch.no_grad()
def planning(net: ValuePrediction, depth: int, obs: torch.Tensor, roots: int, seconds: float) -> tuple[float, float]:
    """Decisions a second: batched, `roots` at once, and by the recursion, one by one."""
    branches, device = widths(depth, BRANCH, BRANCH_DEPTH), obs.device

    def batched(part: torch.Tensor) -> int:
        net.q(part, branches, GAMMA)
        return len(part)

    def one(x: torch.Tensor) -> int:
        recursion(net, net.encode(x), branches)
        return 1

    fast = rate([partial(batched, part) for part in obs.split(roots)], device, seconds)
    return fast, rate([partial(one, obs[:1])], device, seconds)


class Timed(VPN):
    """Counts the seconds its plans take."""

    spent = 0.0

    def q(self, *arguments):
        start = clock(self.device)
        q = super().q(*arguments)
        self.spent += clock(self.device) - start
        return q


def share(network: Callable, depth: int, num_envs: int, seconds: float, device: torch.device) -> tuple[float, float]:
    """Of learning: decisions a second, and the share of the time that plans take."""
    env = Collect(num_envs, mazes=64, device=str(device))
    agent = vpn(env.spec, device, 0, network=network, depth=depth, branch=BRANCH, branch_depth=BRANCH_DEPTH,
                random_steps=20 * num_envs, gamma=GAMMA, epsilon=lambda step: 0.05)  # fmt: skip
    agent.__class__ = Timed
    obs, made, start = env.reset(0), 0, None
    while start is None or agent._rollout or clock(device) - start < seconds:
        if start is None and agent.walks.full:
            agent.spent, start = 0.0, clock(device)
        action = agent.act(obs)
        step = env.step(action)
        agent.update(Transition.of(obs, action, step))
        obs, made = step.obs, made + num_envs * (start is not None)
    spent = clock(device) - start
    return made / spent, agent.spent / spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 3, 5])
    parser.add_argument("--envs", type=int, nargs="+", default=[1, 64, 1024])
    parser.add_argument("--roots", type=int, default=256)
    parser.add_argument("--learning", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(arguments.device)
    encoder = partial(GridEncoder, channels=(32, 32, 64), time_plane=True)
    network = partial(ValuePrediction, encoder=encoder, units=64, gate=True, joint_head=False, duration="relu")
    print(f"{platform.processor() or platform.machine()}, 1 thread, torch {torch.__version__}, {device}")
    print(f"{'depth':>5}{'envs':>7}{'batched':>12}{'recursion':>12}   decisions a second")
    for depth in arguments.depths:
        for num_envs in arguments.envs:
            env = Collect(num_envs, mazes=64, device=arguments.device)
            net = network(env.spec).to(device)
            fast, slow = planning(net, depth, env.reset(0), arguments.roots, arguments.seconds)
            print(f"{depth:>5}{num_envs:>7}{fast:>12,.1f}{slow:>12,.1f}", flush=True)
    for depth in arguments.depths:
        made, plans = share(network, depth, arguments.learning, arguments.seconds, device)
        print(f"learning by VPN({depth}): {made:,.0f} decisions a second, {plans:.0%} of the time in plans", flush=True)


if __name__ == "__main__":
    main()
