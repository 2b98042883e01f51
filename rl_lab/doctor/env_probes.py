"""What any environment must satisfy, ours or Gymnasium's: seeds, repeats, ends, limits, numbers, buffers."""

import copy
import math
import time
from contextlib import closing

import numpy as np
import torch
from torch import Tensor

from rl_lab.core.errors import counted
from rl_lab.core.randomness import generator
from rl_lab.doctor.report import Finding, cut_short, failed, late, not_applicable, passed
from rl_lab.doctor.worlds import World, by_hand, digest, drawn, going_on, played, same, script, stream
from rl_lab.envs.abilities import Tabular

SIGHT = 300  # steps that most probes look at
ENDLESS = 1_000  # steps without an end that are taken for a fault


def runs(world: World) -> Finding:
    """The other probes run only where this one passes."""
    with closing(world.built(world.few)) as env:
        steps = len(list(played(env, world.seed, 100, world.seconds)))
    spec = env.spec
    what = f"observations {spec.obs_shape} {named(spec.obs_dtype)}, {spec.num_actions} actions"
    return passed(f"{steps} steps of {world.few} copies: {what}")


def seeding(world: World) -> Finding:
    """The same seed gives the same episodes, seed 0 too; other seeds and the other copies of a vector give others."""
    odd = [seed for seed, pair in enumerate(world.streams) if not same(*pair)]
    streams = [first for first, _ in world.streams]
    if odd == [0]:
        return failed("seed 0 shows something else each time, other seeds do not: is it taken for no seed?")
    if odd:
        return failed("the same seed shows something else each time: no run can be repeated, nor a fault in it found")
    with closing(world.built(1)) as env:
        begun = {digest([env.reset(seed)]) for seed in world.ticks(3, 8)}
        later = {digest([m.step.obs]) for m in played(env, 0, SIGHT, world.seconds) if m.step.last.any()}
    if len(begun) == 1 and len(later) > 1:
        return failed("every seed begins alike, and later episodes do not: all runs and copies learn from the same few")
    if same(streams[0], streams[1]) and same(streams[1], streams[-1]):
        return passed(f"all seeds show the same: chance has no part in {len(streams[0])} steps")
    if all(same(x[:, 0], x[:, 1]) for x in (side_by_side(world, seed) for seed in range(3))):
        return failed("all copies of a vector play the same episode: many environments teach no more than one")
    return passed(f"the same seed shows the same {len(streams[0])} steps, seed 0 too; other seeds and copies differ")


def side_by_side(world: World, seed: int) -> np.ndarray:
    """What two copies that take the same actions see."""
    with closing(world.built(2)) as env:
        env.reset(seed)
        return stream(going_on(env, 100))


def determinism(world: World) -> Finding:
    """Neither earlier episodes nor a restored state change what follows from a seed."""
    if not world.repeats:
        return not_applicable("the same seed shows something else each time (see seeding)")
    with closing(world.built(2)) as env:
        fresh = stream(played(env, world.seed, 100, world.seconds / 2))
        for _ in played(env, world.seed + 5, 50, world.seconds / 2):
            pass
        if not same(fresh, stream(played(env, world.seed, 100, world.seconds / 2))):
            return failed("after other episodes a seed shows something else: what a run learns depends on its past")
        if not (state := copy.deepcopy(env.state_dict())):
            return passed("earlier episodes leave no trace; its state cannot be saved: a resumed run starts new ones")
        ahead = stream(going_on(env, 50))
        env.load_state_dict(state)
        if not same(ahead, stream(going_on(env, 50))):
            return failed("a restored state goes on otherwise: a resumed run is another run")
    return passed("earlier episodes leave no trace, and a restored state goes on identically")


def numbers(world: World) -> Finding:
    """Observations are of the kind, the shape and within the bounds that the environment states."""
    with closing(world.built(world.few)) as env:
        low, high = getattr(env, "bounds", (-math.inf, math.inf))
        shape, dtype, count = tuple(env.spec.obs_shape), env.spec.obs_dtype, 0
        for t, moment in enumerate(played(env, world.seed, SIGHT, world.seconds)):
            for obs in (moment.obs, moment.step.next_obs):
                if obs.dtype != dtype or tuple(obs.shape[1:]) != shape:
                    return failed(
                        f"step {t} shows {tuple(obs.shape[1:])} {named(obs.dtype)}, and its spec says {shape} "
                        f"{named(dtype)}: a network built for the one fails on the other"
                    )
                if obs.is_floating_point() and not obs.isfinite().all():
                    return failed(f"an observation of step {t} is not finite: it makes every weight nan")
                if obs.min() < low or obs.max() > high:
                    return failed(
                        f"step {t} shows {float(obs.min()):g} to {float(obs.max()):g}, and it states {low:g} to "
                        f"{high:g}: what is scaled by the bounds leaves its range"
                    )
            count += len(moment.obs)
    return passed(f"{count:,} observations are finite, of the stated type and shape, and within stated bounds")


def rewards(world: World) -> Finding:
    with closing(world.built(world.few)) as env:
        reward = torch.stack([m.step.reward.clone() for m in played(env, world.seed, SIGHT, world.seconds)])
    if not reward.isfinite().all():
        t, i = (~reward.isfinite()).nonzero()[0].tolist()
        return failed(f"step {t} of copy {i} pays {float(reward[t, i])}: one such number makes every weight nan")
    low, high = float(reward.min()), float(reward.max())
    if low == high == 0:
        return passed(f"{reward.numel():,} of them are 0: random actions rarely meet another, so exploring is hard")
    return passed(f"{reward.numel():,} of them are finite, from {low:g} to {high:g}")


def ends(world: World) -> Finding:
    """Where episodes end, and how: with the true successor, and then a first observation."""
    with closing(world.built(world.few)) as env:
        first = [env.reset(world.seed + i).clone() for i in world.ticks(4, 20)]
        low, high = torch.cat(first).amin(0), torch.cat(first).amax(0)
        rows = []  # of each step whether it ended, whether without a future, and whether it looks like a first one
        for moment in played(env, world.seed, 20 * SIGHT, world.seconds):
            _, discount, last, next_obs, obs, *_ = moment.step
            if not torch.equal(env.observe(), obs):
                return failed("observe() is not what the step showed: a resumed run acts on something else")
            if not ((discount == 0) | (discount == 1)).all():
                return failed(f"a discount of {float(discount.max()):g}, neither 0 nor 1: it scales the future's value")
            if not torch.equal(obs[~last], next_obs[~last]):
                return failed("within an episode another observation is acted on than was learned from")
            is_first = ((next_obs >= low) & (next_obs <= high)).flatten(1).all(1)
            rows.append(torch.stack([last, discount == 0, is_first]).clone())
    last, final, is_first = torch.stack(rows, 1)  # [T, N]
    terminated, truncated, lives = (int(x.sum()) for x in (last & final, last & ~final, ~last & final))
    if not last.any():
        return cut_short(ends, world) or not_applicable(f"no episode ended in {len(last):,} steps")
    if is_first[~last].float().mean() < 0.5 and any(
        end.sum() > 2 and is_first[end].float().mean() > 0.8 for end in (last & final, last & ~final)
    ):
        return failed(
            "the last observations of episodes look like first ones: it begins anew by itself, and the true successor "
            "is lost; values are bootstrapped from another episode"
        )
    words = f"{counted(terminated, 'episodes')} terminated, {truncated:,} truncated"
    words += f"; {lives:,} lost lives end the future alone" * (lives > 0)
    lengths = episode_lengths(last)
    if len(set(lengths)) == 1 and len(lengths) > 3 and lengths[0] > 1 and not truncated:
        words += f"; all took {lengths[0]} steps: if that is a time limit, truncate there, or show the time left"
    return passed(words)


def episode_lengths(last: Tensor) -> list[int]:
    """The lengths of all that ended, from ends [T, N]."""
    lengths, count = [], torch.zeros(last.shape[1], dtype=torch.int64, device=last.device)
    for row in last:
        count += 1
        lengths += count[row].tolist()
        count[row] = 0
    return lengths


def time_limit(world: World) -> Finding:
    """Each copy repeats an action of its own; the last one takes random ones."""
    with closing(world.built(1)) as probe:
        limit, count = probe.time_limit, min(probe.spec.num_actions, world.few, 7) + 1
    with closing(world.built(count)) as env:
        env.reset(world.seed)
        rng, action = generator(0, env.device), torch.arange(count, device=env.device) % env.spec.num_actions
        length, end = torch.zeros(count, device=env.device), time.monotonic() + world.seconds
        longest = ended = full = terminated = 0
        shown = list[tuple[Tensor, Tensor]]()  # lengths, and what is seen then
        while time.monotonic() < end and full < count and (limit is not None or ended < 5 * count):
            action[-1] = drawn(env, rng)[-1]
            step = env.step(action)
            length += step.duration
            longest = max(longest, int(length.max()))
            if not ended and len(shown) < SIGHT:
                shown.append((length.clone(), step.next_obs.flatten(1).clone()))
            if limit is not None and longest > limit:
                return failed(
                    f"an episode lasts {longest:,} steps, beyond its limit of {limit:,}: evaluations may never end"
                )
            if step.last.any():
                at_limit = step.last & (length == (limit or 0))
                ended, full = ended + int(step.last.sum()), full + int(at_limit.sum())
                terminated += int((at_limit & (step.discount == 0)).sum())
                length[step.last] = 0
    if limit is None and not ended and longest < ENDLESS:
        return late(f"it states none, and no episode ended in {longest:,} steps, for which there was time")
    if limit is None and not ended:
        return failed(f"it states none, and no episode ended in {longest:,} steps: an evaluation may never end")
    if limit is None:
        return passed(f"it states none; {ended} episodes ended by themselves, the longest after {longest:,} steps")
    if not full:
        words = f"no episode lasted its {limit:,} steps; the longest had {longest:,}"
        return cut_short(time_limit, world) or not_applicable(words)
    if terminated == full == ended > 2:
        if tells_time(*(torch.cat(x) for x in zip(*shown, strict=True))):
            return passed(f"{full} episodes are terminated after {limit:,} steps, and observations tell the time left")
        return failed(
            f"all {full} episodes are terminated at the limit of {limit:,} steps, not truncated: what lies beyond is "
            "learned to be worth nothing"
        )
    return passed(f"{full} episodes had all {limit:,} steps, and {full - terminated} of them were truncated there")


def tells_time(length: Tensor, obs: Tensor) -> bool:
    """Whether a number of obs [M, D] follows from the length [M] of its episode so far, and the length from it."""
    known, which = length.unique(return_inverse=True)
    values = torch.zeros(len(known), obs.shape[1], device=obs.device).index_copy_(0, which, obs.float())
    follows = (values[which] == obs).all(0)
    return len(known) > 2 and any(len(x.unique()) == len(known) for x in values[:, follows].T)


def buffers(world: World) -> Finding:
    """An observation that was given stays as it was, in our copies and in the Gymnasium environments beneath them."""
    with world.singles(1) as envs:
        for single in envs:
            given, copied = [], []
            for row in by_hand(single, world.seed, script(world.seed, 0, single, 30), world.seconds):
                given += [row.obs, row.next_obs]
                copied += [np.array(row.obs), np.array(row.next_obs)]
            if not all(map(np.array_equal, given, copied)):
                return failed(
                    "an observation changes when the next one comes: a replay that keeps what it is given fills with "
                    "the newest, and final_obs of a vector is the next episode's first (here each one is copied)"
                )
    with closing(world.built(2)) as env:
        kept = [env.reset(world.seed)]
        copies = [kept[0].clone()]
        for moment in going_on(env, 30):
            answers = [x for x in moment.step if x is not None]
            kept += answers
            copies += [x.clone() for x in answers]
    if not all(torch.equal(x.nan_to_num(), y.nan_to_num()) for x, y in zip(kept, copies, strict=True)):
        return failed("what a step returned changes later: a replay memory fills with the newest observation")
    return passed(f"what {len(kept) // len(answers)} steps returned stays as it was")


def tables(world: World) -> Finding:
    """Checks each step of a known MDP against its tables: successor, reward and end."""
    if not world.kind.is_tabular:
        return not_applicable("it is no known MDP")
    with closing(world.built(world.few)) as env:
        assert isinstance(env, Tabular)
        mdp, count = env.mdp, 0
        for t, (obs, action, step) in enumerate(played(env, world.seed, SIGHT, world.seconds)):
            state, arrived = env.states(obs), env.states(step.next_obs)
            next_state, chance, reward = (x[state, action] for x in mdp[:3])  # [N, K]
            fits = (next_state == arrived[:, None]) & (chance > 0) & ((reward - step.reward[:, None]).abs() < 1e-4)
            if not fits.any(1).all():
                return failed(f"step {t} is none that its tables allow: a planner solves another world")
            if not torch.equal(mdp.terminal[arrived], step.discount == 0):
                return failed(f"step {t} ends where its tables go on, or goes on where they end")
            count += len(action)
    return passed(f"{count:,} steps are such as its tables allow")


def named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
