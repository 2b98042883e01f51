"""Seconds to solve an MDP, beside QuantEcon's DiscreteDP and mdptoolbox-hiive: every value within 1e-6, guaranteed.

python tests/bench/planning.py [--rounds 3] [--sides 10 100 1000]      one thread; interleaved; medians and ratios.

The hard grid: n x n, 15 % walls, +1 in one corner, living -0.01, noise .2, gamma .99. Building the peers' matrices is
not counted; preparing our tables is.
"""

import argparse
import os
import resource
import statistics
import sys
import time
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", NUMBA_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

import numpy as np
import torch
from gpu_parts.figures import table
from scipy import sparse

from rl_lab.envs.tabular.mazes import scattered
from rl_lab.envs.tabular.mdp import MDP, stack
from rl_lab.planning import backup

sys.path.insert(0, str(Path(__file__).parents[1]))
from stated import stated

gridworld = stated("env/base/gridworld", "mdp")
modified_policy_iteration = stated("planner/modified_policy_iteration")
prioritised_sweeping = stated("planner/prioritised_sweeping")
value_iteration = stated("planner/value_iteration")

EPSILON = 1e-6


def hard(side: int, seed: int = 0) -> MDP:
    return gridworld(scattered(side, walls=0.15, seed=seed), living_reward=-0.01, noise=0.2, gamma=0.99)


def ours(planner, **settings):
    def solve(mdp: MDP):
        def run():
            for plan in planner(mdp, epsilon=EPSILON, **settings):  # noqa: B007  one at a time in memory
                pass
            return plan.value.numpy()

        return run

    return solve


def matrices(mdp: MDP) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Transitions [S A, S] and expected rewards [S, A]."""
    states, actions, successors = mdp.next_state.shape
    rows = np.repeat(np.arange(states * actions), successors)
    p = sparse.csr_matrix(
        (mdp.probability.flatten().numpy(), (rows, mdp.next_state.flatten().numpy())), (states * actions, states)
    )
    return p, (mdp.probability * mdp.reward).sum(-1).numpy()


def quantecon(method: str):
    def build(mdp: MDP):
        from quantecon.markov import DiscreteDP

        p, reward = matrices(mdp)
        s, a = (x.ravel() for x in np.indices(reward.shape))
        ddp = DiscreteDP(reward.ravel(), p, mdp.gamma, s, a)
        return lambda: ddp.solve(method=method, epsilon=2 * EPSILON, max_iter=100_000).v  # its epsilon is of the policy

    return build


def hiive(mdp: MDP):
    from hiive.mdptoolbox.mdp import ValueIteration

    p, reward = matrices(mdp)
    per_action = [p[a :: reward.shape[1]] for a in range(reward.shape[1])]

    def run():
        solver = ValueIteration(per_action, reward, mdp.gamma, epsilon=2 * EPSILON, max_iter=100_000,
                                run_stat_frequency=10**9)  # fmt: skip
        solver.run()
        return np.asarray(solver.V)

    return run


def error(mdp: MDP, value: np.ndarray) -> float:
    """At most so far from v*: |T v - v| / (1 - gamma)."""
    v = torch.from_numpy(np.array(value))
    return float((backup(mdp, v).max(-1).values - v).abs().max() / (1 - mdp.gamma))


def compare(title: str, mdp: MDP, contenders: dict, rounds: int) -> None:
    print(
        f"\n{title}: {len(mdp.start):,} states, {mdp.next_state.shape[1]} actions, {mdp.next_state.shape[2]} successors"
    )
    runs = {name: build(mdp) for name, build in contenders.items()}
    seconds = {name: [] for name in runs}
    for name, run in runs.items():  # compiles, and is judged
        print(f"  {name:<42} error <= {error(mdp, run()):.1e}", flush=True)
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
    base = next(iter(seconds.values()))
    for name, spent in seconds.items():
        ratio = statistics.median(b / s for b, s in zip(base, spent, strict=True))
        print(f"  {name:<42}{statistics.median(spent):>10.4f} s{ratio:>9.2f} x", flush=True)


def many(count: int, side: int, rounds: int) -> None:
    batch = stack([hard(side, seed) for seed in range(count)])
    solve, spent = ours(prioritised_sweeping, every=64)(batch), []
    for _ in range(rounds + 1):
        start = time.process_time()
        values = torch.from_numpy(solve())
        spent.append(time.process_time() - start)
    wrong = (backup(batch, values).max(-1).values - values).abs().max() / 0.01
    rate = count / statistics.median(spent[1:])
    print(f"\n{count:,} grids of {side} x {side} in one call: {rate:,.0f} a second, error <= {wrong:.1e}")


PEER = {"QuantEcon value iteration": quantecon("value_iteration")}
OURS = {
    "prioritised sweeping": ours(prioritised_sweeping, every=64),
    "value iteration, symmetric, from below": ours(value_iteration, sweep="symmetric", initial="pessimistic"),
    "value iteration, synchronous (torch)": ours(value_iteration, check_every=16),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", type=int, nargs="*", default=[10, 100, 1_000])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"1 thread, torch {torch.__version__}, CPU seconds")
    for side in arguments.sides:
        contenders = PEER | OURS
        if side <= 100:
            contenders |= {
                "QuantEcon modified policy iteration": quantecon("modified_policy_iteration"),
                "mdptoolbox-hiive value iteration": hiive,
                "modified policy iteration (torch)": ours(modified_policy_iteration),
            }
        if side >= 1_000:
            del contenders["value iteration, synchronous (torch)"]
        compare(f"Hard grid {side} x {side}", hard(side), contenders, arguments.rounds if side < 1_000 else 1)
    general = {
        "value iteration, symmetric, from below": OURS["value iteration, symmetric, from below"],
        "prioritised sweeping": OURS["prioritised sweeping"],
        "modified policy iteration (torch)": ours(modified_policy_iteration),
    }
    compare("Random table", table(100_000, 10, 4), PEER | general, 1)
    many(4_096, 10, arguments.rounds)
    print(f"peak RSS {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB, peers' matrices included")


if __name__ == "__main__":
    main()
