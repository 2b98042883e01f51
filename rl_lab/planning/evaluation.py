"""The exact values of a fixed policy."""

import numpy as np
import torch
from numpy import ndarray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from rl_lab.core.errors import UserError
from rl_lab.envs.tabular.mdp import MDP
from rl_lab.planning.elimination import eliminated, onward, solved
from rl_lab.planning.plan import Backup, Discounted, discounted, follow


def evaluate_policy(mdp: MDP, policy: Tensor, gamma: float | None = None) -> Tensor:
    """v [S] of a fixed policy, exactly, on the CPU.

    `policy` is actions [S] or probabilities [S, A]. Raises UserError where gamma is 1 and it never ends in states
    that pay, or cost, something.
    """
    v = values(discounted(mdp, gamma), policy)
    if not v.isfinite().all():
        raise UserError("gamma=1: the policy to evaluate never ends, so its value may be infinite")
    return v


def values(mdp: Discounted, policy: Tensor) -> Tensor:
    """v [S] of a policy, with gamma as a tensor: the sum of the discounted rewards, however long it takes.

    Without discount it may be infinite; or NaN, where the rewards of a path that never ends cancel only on average.
    """
    if policy.dtype != torch.int64:
        policy = policy.double() / policy.double().sum(-1, keepdim=True)
    chain = follow(mdp, policy)
    step, ended = Backup(chain), chain.terminal.flatten().cpu().numpy()
    weight = step.weights().cpu().numpy()
    weight[ended] = 0.0
    states, successors = weight.shape
    ahead = csr_array((weight.ravel(), step.index.cpu().numpy(), np.arange(states + 1) * successors), (states, states))
    ahead.sum_duplicates()
    ahead.eliminate_zeros()
    leave = (1 - mdp.gamma[..., None]).expand(mdp.start.shape).flatten().cpu().numpy()
    reward = np.where(ended, 0.0, step.reward.flatten().cpu().numpy())
    size = (chain.probability * chain.reward.abs()).sum(-1).flatten().cpu().numpy()
    v = _values(ahead, leave, reward, size, ended)
    return torch.from_numpy(v).to(mdp.start.device).view(mdp.start.shape)


def _values(ahead: csr_array, leave: ndarray, reward: ndarray, size: ndarray, ended: ndarray) -> ndarray:
    """v [N] of v = reward + ahead v; `leave` [N] is 1 - gamma, `size` [N] the mean of |reward|."""
    v, settled = np.zeros(len(reward)), ended.copy()
    if (leave == 0).any():
        for states in _closed(ahead, leave, ended):
            v[states] = _for_ever(ahead, reward, size, states)
            settled[states] = True
        for endless in (-np.inf, np.inf, np.nan):
            meets = _leading_to(ahead, v == endless if endless == endless else np.isnan(v))
            v[meets] = np.where(np.isfinite(v[meets]) | (v[meets] == endless), endless, np.nan)
        settled |= ~np.isfinite(v)
    going = ~settled
    if going.any():
        v[going] = solved(ahead, leave, np.where(going, reward, 0.0), going)
    return v


def _closed(ahead: csr_array, leave: ndarray, ended: ndarray) -> list[ndarray]:
    """The sets of states that a chain without discount never leaves, although none of them is an end."""
    count, label = connected_components(ahead, connection="strong")
    rows = np.repeat(np.arange(len(label)), np.diff(ahead.indptr))
    opens = np.zeros(count, bool)
    opens[label[rows[label[rows] != label[ahead.indices]]]] = True
    opens[label[ended | (leave > 0)]] = True
    inside = np.flatnonzero(~opens[label])
    order = inside[np.argsort(label[inside], kind="stable")]
    return np.split(order, np.flatnonzero(np.diff(label[order])) + 1) if len(order) else []


def _for_ever(ahead: csr_array, reward: ndarray, size: ndarray, states: ndarray) -> float:
    """The value of staying in closed states [n] for ever: 0, plus or minus infinity, or NaN."""
    paid, worth = reward[states], size[states]
    paid = np.where(np.abs(paid) <= 1e-12 * worth, 0.0, paid)
    if (paid == 0).all():
        return 0.0
    if (paid >= 0).all() or (paid <= 0).all():
        return float(np.inf * paid.sum())
    among = ahead[states][:, states].tocsr()
    back = among[1:, [0]].toarray().ravel()
    cycle, most = (  # from one return to the first of them to the next
        x[0] + (among[[0], 1:] @ eliminated(among[1:, 1:], back, x[1:], back > 0)).item() for x in (paid, np.abs(paid))
    )
    return np.nan if abs(cycle) <= 1e-12 * most else float(np.inf * cycle)


def _leading_to(ahead: csr_array, target: ndarray) -> ndarray:
    """The states [N] that may reach one of the target."""
    found = np.zeros_like(target)
    found[onward(ahead.T, target)] = True
    return found
