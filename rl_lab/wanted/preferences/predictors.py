"""An ensemble of reward predictors, each fitted to its own share of the answers."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from rl_lab.core.errors import UserError
from rl_lab.core.learner import OptimizerFn, build_optimizer, take_step
from rl_lab.core.randomness import permutation, seeded
from rl_lab.core.settings import Bound, Count, Natural, NonNegative, Positive, Unit
from rl_lab.networks.torsos import TorsoFn, features_of, standardises
from rl_lab.types import Spec, Transition
from rl_lab.wanted.preferences.clips import Clips, unpacked
from rl_lab.wanted.preferences.losses import overfitted, preference_loss, preferred

Above1 = Annotated[float, Bound(1)]
SMALLEST = 1e-4  # by which rewards are divided


class Predictor(nn.Module):
    """r(s), r(s'), r(s, a), or a potential's change p(s') - p(s)."""

    def __init__(self, spec: Spec, network: TorsoFn, input: str):
        super().__init__()
        self.torso, self.input = network(spec), input
        outputs = spec.num_actions if input == "obs_action" else 1
        self.head = nn.Linear(features_of(self.torso, spec), outputs, bias=False)

    def forward(self, obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        """[B]."""
        if self.input == "obs_action":
            return self._of(obs).gather(-1, action[:, None]).squeeze(-1)
        if self.input == "change":
            return (self._of(next_obs) - self._of(obs)).squeeze(-1)
        return self._of(next_obs if self.input == "entered" else obs).squeeze(-1)

    def _of(self, obs: Tensor) -> Tensor:
        out: Tensor = self.head(self.torso(obs))
        return out


class Ensemble(nn.Module):
    """r^ is the mean of members, each normalised on its own (section 2.2.1). Raises UserError."""

    shift: Tensor  # [M]
    scale: Tensor  # [M]
    penalties: Tensor  # [M]

    def __init__(
        self,
        spec: Spec,
        device: torch.device,
        seed: int,
        *,
        network: TorsoFn,
        input: Literal["entered", "state", "change", "obs_action"],
        members: Count,
        error: Unit,  # share of answers that are taken to be drawn evenly
        optimizer: OptimizerFn | None,  # None: L-BFGS on all answers until it converges
        epochs: Count,  # of the optimizer, each time it fits; L-BFGS: its iterations
        batch_size: Count,  # pairs, of the optimizer
        penalty: NonNegative,  # half of it times the squared parameters
        adapt: Above1,  # by which it moves after each fit, as the loss of held-out answers wants it; 1: it stays
        normalise: Literal["scale", "standard", "none"],  # standard: to mean 0 too, by which episodes may never end
        deviation: Positive,  # of r^ from 0, root mean square
        hidden_rows: Natural,  # at the top of a frame, where the score stands
    ):
        super().__init__()
        if hidden_rows and (len(spec.obs_shape) != 3 or hidden_rows >= spec.obs_shape[1]):
            raise UserError(f"loop.predictor.hidden_rows={hidden_rows} hides rows of a picture, and these observations "
                            f"are {list(spec.obs_shape)}; choose fewer, or 0")  # fmt: skip
        with seeded(seed, device):
            found = [Predictor(spec, network, input).to(device) for _ in range(members)]
        if standardises(found[0]):
            raise UserError("loop.predictor.network.standardise=true takes statistics of frames, which predictors do "
                            "not gather; leave it out")  # fmt: skip
        for member in found:
            if not [*member.torso.parameters()]:  # a table: what was never seen pays nothing
                nn.init.zeros_(member.head.weight)
        self.members: Sequence[Predictor] = nn.ModuleList(found)  # type: ignore[assignment]
        self.register_buffer("shift", torch.zeros(members, device=device))
        self.register_buffer("scale", torch.ones(members, device=device))
        self.register_buffer("penalties", torch.full((members,), float(penalty), device=device), persistent=adapt != 1)
        self.adapt = adapt
        self.optimizer, self.epochs, self.batch_size, self.error = optimizer, epochs, batch_size, error
        self.normalise, self.deviation, self.hidden_rows = normalise, deviation, hidden_rows
        self.frame_stack = spec.frame_stack
        self.channels = spec.obs_shape[0] // spec.frame_stack if spec.frame_stack > 1 else 1
        self.eval()

    def seen(self, obs: Tensor) -> Tensor:
        if not self.hidden_rows:
            return obs
        obs = obs.clone()
        obs[..., : self.hidden_rows, :] = 0
        return obs

    @torch.no_grad()
    def rewards(self, t: Transition) -> Tensor:
        """r^ [B], which takes the place of the world's reward."""
        obs, next_obs = self.seen(t.obs), self.seen(t.next_obs)
        found = torch.stack([member(obs, t.action, next_obs) for member in self.members])
        return self.deviation * ((found - self.shift[:, None]) / self.scale[:, None]).mean(0)

    def of_clip(self, member: Predictor, clips: Clips) -> Tensor:
        """[B, k], the rewards of each step; 0 where the episode is over."""
        obs = self.seen(unpacked(clips.obs, self.frame_stack, self.channels))
        action = clips.action
        found = member(obs[:, :-1].flatten(0, 1), action.flatten(), obs[:, 1:].flatten(0, 1))
        return found.view(action.shape) * clips.counts

    @torch.no_grad()
    def along(self, clips: Clips) -> Tensor:
        """r^ [B, k] of each step."""
        found = torch.stack([self.of_clip(member, clips) for member in self.members])
        shift, scale = self.shift[:, None, None], self.scale[:, None, None]
        return self.deviation * ((found - shift) / scale).mean(0) * clips.counts

    def difference(self, member: Predictor, left: Clips, right: Clips) -> Tensor:
        """[n], the sum of the left clip's rewards less that of the right one's."""
        return self.of_clip(member, left).sum(1) - self.of_clip(member, right).sum(1)

    @torch.no_grad()
    def probability(self, left: Clips, right: Clips) -> Tensor:
        """P(left) [M, n] of each member."""
        parts = []
        for some in torch.arange(len(left.length), device=left.length.device).split(256):
            pair = left.of(some), right.of(some)
            parts.append(torch.stack([preferred(self.difference(m, *pair), self.error) for m in self.members]))
        return torch.cat(parts, 1)

    def loss(self, member: Predictor, left: Clips, right: Clips, answer: Tensor, weight: Tensor) -> Tensor:
        """[], the mean over answers [n] by their weights [n], and the penalty."""
        each = preference_loss(self.difference(member, left, right), answer.float(), self.error)
        penalty = self.penalties[[*self.members].index(member)]
        size = sum(p.square().sum() for p in member.parameters())
        return (weight * each).sum() / weight.sum().clamp(min=1) + penalty / 2 * size

    def fit(self, left: Clips, right: Clips, answer: Tensor, weight: Tensor, rng: torch.Generator) -> None:
        """Each member to the answers [n], by its weights [n, M]; then what it is normalised by."""
        for number, member in enumerate(self.members):
            own = weight[:, number].nonzero().squeeze(-1)  # what has no weight is held out
            if not len(own):
                continue
            member.train()
            if self.optimizer is None:
                self._converge(member, left.of(own), right.of(own), answer[own], weight[own, number])
            else:
                self._descend(member, left, right, answer, weight[:, number], own, rng)
            member.eval()
        if self.adapt != 1:
            self.penalties *= self.adapt ** overfitted(self.probability(left, right), answer.float(), weight.T)
        self.renormalise(left, right)

    def _converge(self, member: Predictor, left: Clips, right: Clips, answer: Tensor, weight: Tensor) -> None:
        search = torch.optim.LBFGS(member.parameters(), max_iter=self.epochs, tolerance_grad=1e-6,
                                   tolerance_change=1e-9, line_search_fn="strong_wolfe")  # fmt: skip

        def closure() -> Tensor:
            search.zero_grad()
            loss = self.loss(member, left, right, answer, weight)
            loss.backward()
            return loss

        search.step(closure)

    def _descend(self, member: Predictor, left: Clips, right: Clips, answer: Tensor, weight: Tensor, own: Tensor,
                 rng: torch.Generator) -> None:  # fmt: skip
        assert self.optimizer is not None
        optimizer = build_optimizer(self.optimizer, member.parameters())
        for _ in range(self.epochs):
            for some in own[permutation(len(own), rng)].split(self.batch_size):
                optimizer.zero_grad(set_to_none=True)
                self.loss(member, left.of(some), right.of(some), answer[some], weight[some]).backward()
                take_step(optimizer)

    @torch.no_grad()
    def renormalise(self, left: Clips, right: Clips, newest: int = 200) -> None:
        """Over the steps of the last 400 clips."""
        if self.normalise == "none":
            return
        for number, member in enumerate(self.members):
            clips = left.of(slice(-newest, None)), right.of(slice(-newest, None))
            steps = torch.cat([self.of_clip(member, c)[c.counts] for c in clips])
            if self.normalise == "standard":
                self.shift[number] = steps.mean()
            self.scale[number] = (steps - self.shift[number]).square().mean().sqrt().clamp(min=SMALLEST)
