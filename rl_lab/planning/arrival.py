"""Which policies arrive, and which may stay for ever: this depends on the transition probabilities, not on the values.

A batch of worlds is one here: its states lie one after another, N in all.
"""

import numpy as np
import torch
from numpy import ndarray
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components, dijkstra
from torch import Tensor

from rl_lab.planning.elimination import solved
from rl_lab.planning.plan import FAR, Backup, Discounted, Plan, tie

NOTHING = 1e-10  # a value that rounding alone keeps from 0


class Graph:
    """Who may lead to whom. `allowed` [N, A] bool are actions, `target` [N] bool states."""

    def __init__(self, mdp: Discounted):
        step, actions = Backup(mdp), len(mdp.actions)
        self.onto = step.index.cpu().numpy().reshape(-1, actions, mdp.next_state.shape[-1])
        self.possible = (mdp.probability > 0).cpu().numpy().reshape(self.onto.shape)
        self.chance = mdp.probability.cpu().numpy().reshape(self.onto.shape)
        self.ended = mdp.terminal.flatten().cpu().numpy()
        self.reward = step.reward.cpu().numpy().reshape(-1, actions)
        size = (mdp.probability * mdp.reward.abs()).sum(-1).cpu().numpy().reshape(-1, actions)
        self.reward[np.abs(self.reward) <= 1e-12 * size] = 0.0
        gamma = mdp.gamma[..., None].expand(mdp.start.shape).flatten().cpu().numpy()
        self.endless, self.far = (gamma == 1) & ~self.ended, (gamma > FAR) & ~self.ended

    def edges(self, allowed: ndarray) -> csr_array:
        """[N, N], of the allowed actions."""
        state, action, k = np.nonzero(allowed[..., None] & self.possible)
        ones = np.ones(len(state), np.float32)
        return coo_array((ones, (state, self.onto[state, action, k])), shape=(len(allowed),) * 2).tocsr()

    def distance(self, allowed: ndarray, target: ndarray) -> ndarray:
        """Fewest steps [N] in which allowed actions may lead into the target; infinite where they cannot."""
        edges, count = self.edges(allowed).tocoo(), len(target)
        inside = np.flatnonzero(target)
        source, onto = np.append(edges.col, np.full_like(inside, count)), np.append(edges.row, inside)
        back = coo_array((np.ones(len(onto), np.float32), (source, onto)), shape=(count + 1, count + 1)).tocsr()
        return dijkstra(back, unweighted=True, indices=count)[:count] - 1

    def within(self, inside: ndarray) -> ndarray:
        """The actions [N, A] that lead nowhere else."""
        return ~(self.possible & ~inside[self.onto]).any(-1)

    def surely(self, allowed: ndarray, target: ndarray) -> tuple[ndarray, ndarray]:
        """The states [N] from which allowed actions can lead into the target with probability 1, and such actions [N].

        Of those that come nearer it is the first one, by a shortest possible way.
        """
        inside = np.ones_like(target)
        while True:
            kept = allowed & self.within(inside)
            distance = self.distance(kept, target)
            found = inside & np.isfinite(distance)
            if (found == inside).all():
                ahead = np.where(self.possible, distance[self.onto], np.inf).min(-1)
                return inside, np.where(kept, ahead, np.inf).argmin(-1)
            inside = found

    def soonest(self, allowed: ndarray, policy: ndarray, going: ndarray) -> ndarray:
        """The policy [N] of allowed actions that leaves the states `going` [N] in the fewest steps on average.

        By policy iteration from `policy`, which leaves for certain; of actions that are as soon, its own stays.
        """
        states, now = np.arange(len(policy)), policy
        while True:
            chance = np.where(going[:, None], self.chance[states, now], 0.0)
            rows = np.repeat(states, chance.shape[1])
            ahead = coo_array(
                (chance.ravel(), (rows, self.onto[states, now].ravel())), shape=(len(states),) * 2
            ).tocsr()
            ahead.eliminate_zeros()
            steps = np.zeros(len(states))
            steps[going] = solved(ahead, np.zeros(len(states)), going.astype(float), going)
            then = np.where(allowed, 1 + (self.chance * steps[self.onto]).sum(-1), np.inf)
            fewer = going & (then.min(-1) < steps - 1e-9 * (1 + steps))
            if not fewer.any():
                break
            now = np.where(fewer, then.argmin(-1), now)
        return now

    def staying(self, allowed: ndarray) -> tuple[ndarray, ndarray]:
        """The allowed actions [N, A] by which one can stay for ever where one is, and the components [N] int.

        These are the maximal end components (de Alfaro, 1997): each of its states leads to each by them, and nowhere
        else.
        """
        allowed = allowed & ~self.ended[:, None]
        while True:
            _, component = connected_components(self.edges(allowed), connection="strong")
            leaves = self.possible & (component[self.onto] != component[:, None, None])
            kept = allowed & ~leaves.any(-1)
            if (kept == allowed).all():
                return kept, component
            allowed = kept

    def resting(self, allowed: ndarray) -> ndarray:
        """The allowed actions [N, A] by which one can stay for ever and never be paid, where gamma is next to 1."""
        return self.staying(allowed & (self.reward == 0) & self.far[:, None])[0]


def arriving(plan: Plan) -> Tensor:
    """Actions [S] as greedy as `plan.policy`, by the rule of rl_lab.planning: a policy that can arrive does."""
    graph, best = Graph(plan.mdp), plan.q.max(-1, keepdim=True).values
    actions = np.arange(graph.onto.shape[1])
    policy = plan.policy.flatten().cpu().numpy()
    chosen = actions == policy[:, None]
    tied = (plan.q >= best - tie(plan.mdp)[..., None, None] * (1 + best.abs())).cpu().numpy().reshape(
        chosen.shape
    ) | chosen
    home, _ = graph.surely(chosen, graph.ended)
    if home.all() and not (graph.far & (tied.sum(1) > 1)).any():
        return plan.policy
    comes, nearer = graph.surely(tied, graph.ended | home)
    policy = np.where(comes & ~home, nearer, policy)
    if (hurried := graph.far & comes).any():
        policy = graph.soonest(tied & graph.within(comes), policy, hurried)
    if (graph.far & ~comes).any():
        nothing = (best.abs() <= NOTHING).flatten().cpu().numpy()
        rest = graph.resting(tied & (nothing & ~comes)[:, None])
        resting = rest.any(-1)
        stays = np.where(rest[np.arange(len(policy)), policy], policy, rest.argmax(-1))
        settles, nearer = graph.surely(tied, comes | resting)
        policy = np.where(resting, stays, np.where(graph.far & settles & ~comes, nearer, policy))
    return torch.from_numpy(policy).to(plan.policy.device).view(plan.policy.shape)
