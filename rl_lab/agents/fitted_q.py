"""Regressors for fitted Q iteration (Ernst, Geurts and Wehenkel, 2005; https://jmlr.org/papers/v6/ernst05a.html).

Each learns q(s, a) from a fixed set of targets, `fit(obs [B, ...], action [B], target [B], weight [B])`, then answers
`predict(obs [B, ...]) -> q [B, A]`; in between it plays greedily, like any agent. The iteration itself is `fitted_q`.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rl_lab import losses, returns
from rl_lab.agents import exploration
from rl_lab.core.devices import double
from rl_lab.core.errors import UserError
from rl_lab.core.learner import Learner, Metrics, OptimizerFn, build_optimizer, descend
from rl_lab.core.randomness import generator, seeded
from rl_lab.core.settings import Bound, Count, Unit
from rl_lab.networks.heads import Outputs
from rl_lab.networks.torsos import TorsoFn
from rl_lab.types import Spec, Transition, View

if TYPE_CHECKING:
    from sklearn.ensemble import ExtraTreesRegressor


class FittedQ(Learner):
    """What the regressors share: they play by what they predict. `fits` counts the iterations; 0: Q is 0."""

    fits = 0

    def fit(self, obs: Tensor, action: Tensor, target: Tensor, weight: Tensor) -> None:
        raise NotImplementedError

    def predict(self, obs: Tensor) -> Tensor:
        raise NotImplementedError

    def act(self, obs: Tensor, greedy: bool = True) -> Tensor:
        return self.predict(obs).argmax(-1)

    def probabilities(self, obs: Tensor) -> Tensor:
        q = self.predict(obs)
        return exploration.certain(q.argmax(-1), q.shape[-1])

    def view(self, obs: Tensor) -> View:
        q = self.predict(obs)
        return View(q, q.max(-1).values, "action values")

    def update(self, transition: Transition) -> Metrics:
        return {}


class Iterate(NamedTuple):
    """Q after an iteration, on the data."""

    q: Tensor  # [B] of what was done
    residual: Tensor  # [] root mean square of r + gamma max q(s') - q(s, a)
    change: Tensor  # [] the largest change of q(s, a)


def fitted_q(batch: Transition, regressor: FittedQ, gamma: float, weight: Tensor | None = None) -> Iterator[Iterate]:
    """Q_0 = 0; Q_k = regression of r + gamma discount max_b Q_{k-1}(s', b) on (s, a), for ever.

    `batch` [B, ...]; `weight` [B] of each transition, None: all the same. A fitted regressor is fitted further. With
    networks see Riedmiller (2005).
    """
    weight = torch.ones_like(batch.reward) if weight is None else weight
    reward, weight = batch.reward.double(), weight.double()
    discount = returns.discounts(gamma, batch.discount.double(), batch.duration)

    def evaluated() -> tuple[Tensor, Tensor]:
        """q(s, a) and its target, both [B]."""
        if not regressor.fits:
            return torch.zeros_like(reward), reward
        q = losses.pick(regressor.predict(batch.obs), batch.action).double()
        return q, reward + discount * regressor.predict(batch.next_obs).max(-1).values

    q, target = evaluated()
    while True:
        before = q
        regressor.fit(batch.obs, batch.action, target, weight)
        q, target = evaluated()
        mean_square = (weight * (target - q) ** 2).sum() / weight.sum()
        yield Iterate(q, mean_square.sqrt(), (q - before).abs().max())


class LeastSquares(FittedQ):
    """Q linear in the observation, by exact least squares; on one-hot observations a table of weighted means.

    Where the data do not determine the weights, the smallest ones are taken: 0 for what was never seen.
    """

    saved = "weight", "fits"

    def __init__(self, spec: Spec, device: torch.device, seed: int):
        self.weight = torch.zeros(spec.num_actions, math.prod(spec.obs_shape), dtype=torch.float64, device=device)

    def fit(self, obs: Tensor, action: Tensor, target: Tensor, weight: Tensor) -> None:
        """w_a = (X^T D X)^+ X^T D y over the rows where a was taken."""
        x = obs.flatten(1).double()
        for a in range(len(self.weight)):
            rows = action == a
            weighted = weight[rows, None] * x[rows]
            self.weight[a] = torch.linalg.pinv(weighted.T @ x[rows], hermitian=True) @ (weighted.T @ target[rows])
        self.fits += 1

    def predict(self, obs: Tensor) -> Tensor:
        return obs.flatten(1).double() @ self.weight.to(obs.device).T


class Network(FittedQ):
    """Neural fitted Q (Riedmiller, 2005): in each iteration the network is trained until its loss no longer falls."""

    saved = "network", "fits"

    def __init__(
        self,
        spec: Spec,
        device: torch.device,
        seed: int,
        *,
        network: TorsoFn,
        optimizer: OptimizerFn,  # begins anew in each iteration
        batch_size: Count | None,  # None: all data at once
        max_epochs: Count,  # an iteration
        tolerance: Unit,  # it has converged when the best loss falls by less than this share ...
        patience: Count,  # ... in this many epochs
        warm: bool,  # starts from the parameters of the iteration before; or from new ones
    ):
        with seeded(seed, device):
            self.network = Outputs(spec, network, spec.num_actions).to(device)
        self.new = partial(Outputs, spec, network, spec.num_actions)
        self.optimizer, self.seed, self.device = optimizer, seed, device
        self.batch_size, self.max_epochs, self.warm = batch_size, max_epochs, warm
        self.tolerance, self.patience = tolerance, patience

    def fit(self, obs: Tensor, action: Tensor, target: Tensor, weight: Tensor) -> None:
        rng = generator(self.seed + self.fits, self.device)
        if not self.warm:
            with seeded(self.seed + self.fits, self.device):
                self.network.load_state_dict(self.new().to(self.device).state_dict())
        optimizer, target = build_optimizer(self.optimizer, self.network.parameters()), target.float()
        weight, size, best, waited = (weight / weight.mean()).float(), self.batch_size or len(target), math.inf, 0
        for _ in range(self.max_epochs):
            order = torch.randperm(len(target), generator=rng, device=self.device)
            total = double(torch.zeros((), device=self.device))
            for part in order.split(size) if size < len(target) else [slice(None)]:
                error = target[part] - losses.pick(self.network(obs[part]), action[part])
                loss = (weight[part] * losses.half_square(error)).sum()
                descend(optimizer, loss / len(error))
                total += loss.detach()
            waited = 0 if float(total) < (1 - self.tolerance) * best else waited + 1
            best = min(best, float(total))
            if waited == self.patience:
                break
        self.fits += 1

    @torch.no_grad()
    def predict(self, obs: Tensor) -> Tensor:
        parts = [self.network(part) for part in obs.split(4_096)]
        return torch.cat(parts)


class Forest(NamedTuple):
    """The trees as tables of nodes, one after another; a leaf leads to itself."""

    feature: Tensor  # [nodes] int64, what is compared
    threshold: Tensor  # [nodes] float64
    child: Tensor  # [nodes, 2] int64: where x <= threshold, and where not
    value: Tensor  # [nodes] float64
    root: Tensor  # [trees] int64
    depth: int

    def predict(self, x: Tensor) -> Tensor:
        """x [B, F] float32 -> the mean over trees [B]."""
        node = self.root.expand(len(x), -1)
        for _ in range(self.depth):
            right = x.gather(1, self.feature[node]) > self.threshold[node]
            node = self.child[node, right.long()]
        return self.value[node].mean(-1)


Tables = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, int]  # a Forest, as a checkpoint holds it


class ExtraTrees(FittedQ):
    """Extremely randomised trees (Geurts, Ernst and Wehenkel, 2006), grown by scikit-learn; the action is an input.

    The trees are kept as tensors, so that a checkpoint is data alone and any device predicts.
    """

    saved = "forest", "fits"

    def __init__(
        self,
        spec: Spec,
        device: torch.device,
        seed: int,
        *,
        trees: Count,
        min_samples_split: Annotated[int, Bound(2)],  # n_min of Ernst et al.: a smaller node is a leaf
        max_features: Annotated[float, Bound(0, 1, above=True)],  # share of the inputs that each split tries
        n_jobs: int,  # -1: all cores
    ):
        if not n_jobs:
            raise UserError("agent.n_jobs=0 is no number of cores; choose 1 or more, or -1: all of them")
        self.num_actions, self.inputs = spec.num_actions, math.prod(spec.obs_shape) + 1
        self.device, self.seed = device, seed
        self.settings = {
            "n_estimators": trees,
            "min_samples_split": min_samples_split,
            "max_features": float(max_features),  # to scikit-learn a whole number is a count
            "n_jobs": n_jobs,
        }
        leaf = torch.zeros(1, dtype=torch.int64)
        self.forest = self._moved(Forest(leaf, leaf.double(), leaf.expand(1, 2), leaf.double(), leaf, 0))

    def fit(self, obs: Tensor, action: Tensor, target: Tensor, weight: Tensor) -> None:
        from sklearn.ensemble import ExtraTreesRegressor

        model = ExtraTreesRegressor(random_state=self.seed % 2**31 + self.fits, **self.settings)
        model.fit(self._input(obs, action).cpu().numpy(), target.cpu().numpy(), weight.cpu().numpy())
        self.forest = self._moved(forest_of(model))
        self.fits += 1

    def predict(self, obs: Tensor) -> Tensor:
        actions = torch.arange(self.num_actions, device=obs.device)
        forest, parts = Forest(*self.forest), []
        for part in obs.split(4_096):
            x = self._input(part.repeat_interleave(self.num_actions, 0), actions.repeat(len(part)))
            parts.append(forest.predict(x).view(len(part), self.num_actions))
        return torch.cat(parts)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError where the tables do not fit together, or are not over these inputs."""
        forest = Forest(*state["forest"])
        nodes = torch.arange(len(forest.feature))
        whole = len(forest.child) == len(forest.threshold) == len(forest.value) == len(nodes)
        inside = [(forest.feature, self.inputs), (forest.child, len(nodes)), (forest.root, len(nodes))]
        if not (whole and all(((x >= 0) & (x < most)).all() for x, most in inside) and 0 <= forest.depth <= len(nodes)):
            raise ValueError("its trees are not of these observations and actions")
        super().load_state_dict({**state, "forest": self._moved(forest)})

    def _input(self, obs: Tensor, action: Tensor) -> Tensor:
        return torch.cat([obs.flatten(1).float(), action[:, None].float()], 1)

    def _moved(self, forest: Forest) -> Tables:
        feature, threshold, child, value, root = (x.to(self.device) for x in forest[:5])
        return feature, threshold, child, value, root, forest.depth


def forest_of(model: "ExtraTreesRegressor") -> Forest:
    """Of a trained scikit-learn forest."""
    tables, roots, count = [], [], 0
    for tree in (estimator.tree_ for estimator in model.estimators_):
        own = np.arange(tree.node_count)
        leaf = tree.children_left < 0
        child = np.stack([np.where(leaf, own, x) for x in (tree.children_left, tree.children_right)], 1) + count
        tables.append(
            (np.where(leaf, 0, tree.feature), np.where(leaf, 0.0, tree.threshold), child, tree.value[:, 0, 0])
        )
        roots.append(count)
        count += tree.node_count
    columns = [torch.from_numpy(np.concatenate(x)) for x in zip(*tables, strict=True)]
    depth = max(estimator.tree_.max_depth for estimator in model.estimators_)
    return Forest(columns[0].long(), columns[1], columns[2].long(), columns[3], torch.tensor(roots), int(depth))
