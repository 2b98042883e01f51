"""The linear programme of an MDP, through scipy's HiGHS: a check that shares no code with the sweeps."""

from collections.abc import Iterator

import numpy as np
import torch

from rl_lab.core.errors import UserError
from rl_lab.core.settings import Unit
from rl_lab.envs.tabular.mdp import MDP
from rl_lab.planning.plan import Backup, Plan
from rl_lab.planning.policies import concluded, judged, may_rest


def linear_programming(mdp: MDP, *, gamma: Unit | None) -> Iterator[Plan]:
    """The least v with v(s) >= E[r + gamma v(s')] for every action is v* (d'Epenoux, 1963). Yields one plan.

    Without discount v >= 0 too, where one can rest for ever. Raises UserError where no such v is finite.
    """
    from scipy.optimize import linprog
    from scipy.sparse import coo_array

    mdp = judged(mdp, gamma)
    step = Backup(mdp)
    going_on = (~mdp.terminal.flatten()).nonzero().squeeze(-1).cpu().numpy()
    states, actions = mdp.start.numel(), mdp.next_state.shape[-2]
    rows = np.arange(states * actions)
    weight = step.weights().cpu().numpy()
    columns = step.index.cpu().numpy()
    ahead = coo_array((weight.ravel(), (np.repeat(rows, weight.shape[1]), columns)), shape=(len(rows), states))
    stay = coo_array((np.ones(len(rows)), (rows, rows // actions)), shape=ahead.shape)
    kept = (going_on[:, None] * actions + np.arange(actions)).ravel()
    constraints = (ahead - stay).tocsr()[kept][:, going_on]  # of v where it is not 0
    rests = may_rest(mdp).flatten().cpu().numpy()[going_on]
    answer = linprog(
        np.ones(len(going_on)),
        constraints,
        -step.reward.flatten().cpu().numpy()[kept],
        bounds=np.stack([np.where(rests, 0.0, -np.inf), np.full(len(rests), np.inf)], 1),
        method="highs",
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    if answer.x is None:
        raise UserError(
            f"the linear programme has no solution ({' '.join(answer.message.split())}): choose a smaller planner.gamma"
        )
    v = torch.zeros(states, dtype=torch.float64)
    v[going_on] = torch.from_numpy(answer.x)
    v = v.to(mdp.start.device).view(mdp.start.shape)
    q = step(v)
    yield concluded(Plan(mdp, v, (q.max(-1).values - v).abs().max(-1).values, q=q))
