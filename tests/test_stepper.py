"""The stepper against the tensors."""

import os
import shutil

import pytest
import torch
from stated import stated
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from rl_lab.core.errors import UserError
from rl_lab.envs.tabular.lottery import Lottery
from rl_lab.envs.tabular.mdp import MDP
from rl_lab.envs.tabular.stepper import Walkers
from rl_lab.planning import evaluate_policy

MDPEnv = stated("env/base/tabular")
gridworld = stated("env/base/gridworld", "mdp")
value_iteration = stated("planner/value_iteration")

BOOK = "...G\n.#.X\nS..."
FOUR = {"map": BOOK, "living_reward": -0.04, "noise": 0.2}
FORMS = ["one_hot", "index", "planes", "coordinates"]


def last(plans):
    *_, plan = plans
    return plan


def any_mdp(states=12, actions=3, successors=5, seed=0):
    """Probabilities that share no denominator, several of them 0, and any state may be the first."""
    rng = torch.Generator().manual_seed(seed)
    p = torch.rand(states, actions, successors, generator=rng, dtype=torch.float64)
    p = p * (torch.rand(p.shape, generator=rng) < 0.7)
    p[..., 0] += 0.01
    next_state = torch.randint(states, p.shape, generator=rng)
    start = torch.rand(states, generator=rng, dtype=torch.float64)
    reward = torch.randn(p.shape, generator=rng, dtype=torch.float64)
    return MDP(next_state, p / p.sum(-1, keepdim=True), reward, torch.zeros(states, dtype=torch.bool),
               start / start.sum(), ("a", "b", "c"))  # fmt: skip


# -- chance


@pytest.mark.parametrize(
    ("mdp", "tickets"),
    [
        (gridworld(BOOK, noise=0.4, slip="uniform"), 10),
        (gridworld(BOOK, noise=2 / 3), 3),
        (gridworld(BOOK, noise=0.0), 1),
        (gridworld(BOOK, noise=0.123456789), None),
        (any_mdp(), None),
    ],
    ids=["tenths", "thirds", "certain", "searched", "any"],
)
def test_stepper_follows_the_tables(mdp, tickets):
    """Chi-square of the observed successors, for every state and action; the reward is that of the successor."""
    env = MDPEnv(mdp, num_envs=4_096, time_limit=1_000, obs="index")
    states, actions, _ = mdp.next_state.shape
    state, counts = env.reset(0), torch.zeros(states, actions, states, dtype=torch.float64)
    rng = torch.Generator().manual_seed(1)
    for _ in range(100):
        action = torch.randint(actions, (env.num_envs,), generator=rng)
        step = env.step(action)
        index = (state * actions + action) * states + step.next_obs
        counts.view(-1).index_add_(0, index, torch.ones(env.num_envs, dtype=torch.float64))
        paid = (mdp.next_state[state, action] == step.next_obs[:, None]) & (
            mdp.reward[state, action].float() == step.reward[:, None]
        )
        assert paid.any(-1).all()
        state = step.obs
    p = torch.zeros_like(counts).scatter_add_(-1, mdp.next_state, mdp.probability)
    expected = p * counts.sum(-1, keepdim=True)
    assert counts[p == 0].sum() == 0
    seen = (counts.sum(-1) > 100) & ~mdp.terminal[:, None]
    chi_square = torch.where(p > 0, (counts - expected) ** 2 / expected, 0.0).sum(-1)[seen].sum().item()
    freedom = ((p > 0).sum(-1) - 1)[seen].sum().item()
    assert seen.sum() > 30 and abs(chi_square - freedom) <= 4 * (2 * freedom) ** 0.5
    assert Lottery(mdp.probability.flatten(0, 1)).tickets == tickets


def test_first_states_follow_their_distribution():
    for start in ([0.5, 0.2, 0.3, 0.0], [2**-0.5, 1 - 2**-0.5, 0.0, 0.0]):
        mdp = gridworld("SSSG", noise=0.0)._replace(start=torch.tensor(start, dtype=torch.float64))
        env, n = MDPEnv(mdp, 100_000, time_limit=1, obs="index"), 200_000
        env.reset(0)
        counts = torch.stack([env.step(torch.zeros(100_000, dtype=torch.int64)).obs for _ in range(2)]).flatten()
        counts, p = counts.bincount(minlength=4), torch.tensor(start)
        assert ((counts - n * p).abs() <= 4 * (n * p * (1 - p)).sqrt()).all()


def test_an_outcome_of_no_probability_is_never_drawn():
    """Not by the smallest draw nor by the largest, where rounding leaves the sum of the others short of 1."""
    root = 2**-0.5
    rows = torch.tensor([[0.0, root, 1 - root - 1e-10, 0.0], [0.0, 1 - root, root, 0.0]], dtype=torch.float64)
    lottery, extremes = Lottery(rows), torch.tensor([0.0, 1 - 2**-24])
    assert lottery.tickets is None
    assert lottery.entry(torch.tensor([0, 0]), extremes).tolist() == [1, 2]
    assert lottery.entry(torch.tensor([1, 1]), extremes).tolist() == [5, 6]
    tenths = torch.tensor([[0.1] * 10 + [0.0]], dtype=torch.float64)
    assert tenths.cumsum(1)[0, -1] < 1 and Lottery(tenths).tickets == 10
    assert Lottery(tenths).table(torch.arange(11)[None]).tolist() == list(range(10))


def test_each_outcome_holds_its_share_of_the_tickets():
    lottery = Lottery(torch.tensor([[0.29, 0.71], [0.5, 0.5]], dtype=torch.float64))  # 100 * 0.29 is below 29
    assert lottery.tickets == 100
    assert lottery.table(torch.tensor([[3, 4], [5, 6]])).bincount().tolist() == [0, 0, 0, 29, 71, 50, 50]
    assert lottery.entry(torch.tensor([1, 1]), torch.tensor([0, 99])).tolist() == [100, 199]


def test_a_walkers_return_is_the_planned_value():
    mdp, gamma = gridworld(**FOUR), 0.9
    policy = last(value_iteration(mdp, gamma=gamma)).policy
    env = MDPEnv(mdp, num_envs=20_000, time_limit=10_000, obs="index")
    state, alive = env.reset(0), torch.ones(env.num_envs)
    total = torch.zeros(env.num_envs)
    for t in range(200):
        step = env.step(policy[state])
        total += gamma**t * step.reward * alive
        alive *= 1 - step.last.float()
        state = step.obs
    value = (mdp.start @ evaluate_policy(mdp, policy, gamma)).item()
    assert abs(total.mean().item() - value) < 4 * total.std().item() / env.num_envs**0.5


def test_the_same_seed_gives_the_same_stream_and_nothing_else_matters():
    def path(seed, obs="index"):
        env = MDPEnv(gridworld(**FOUR), 64, time_limit=9, obs=obs)
        env.reset(seed)
        torch.rand(7)  # the global stream is not ours
        return torch.stack([env.states(env.step(torch.full((64,), t % 4)).obs) for t in range(20)])

    assert torch.equal(path(3), path(3)) and not torch.equal(path(3), path(4))
    assert all(torch.equal(path(3), path(3, form)) for form in FORMS)


# -- ends


def test_truncation_is_not_termination():
    """Reward 1 for ever, cut at 10: each cut must leave the future open."""
    mdp = gridworld("S", rewards={}, living_reward=1.0)
    env = MDPEnv(mdp, num_envs=2, time_limit=10)
    env.reset(0)
    steps = [env.step(torch.zeros(2, dtype=torch.int64)) for _ in range(20)]
    assert [s.last.all().item() for s in steps] == ([False] * 9 + [True]) * 2
    assert all((s.discount == 1).all() and (s.reward == 1).all() for s in steps)


def test_terminal_states_end_the_future_and_the_true_successor_is_kept():
    mdp = gridworld("SG")
    env = MDPEnv(mdp, num_envs=1, time_limit=10)
    env.reset(0)
    step = env.step(torch.tensor([1]))
    assert step.last.all() and (step.discount == 0).all() and (step.reward == 1).all()
    assert step.next_obs.argmax() == 1 and step.obs.argmax() == 0


def test_a_goal_reached_in_the_last_step_terminates_and_the_clock_starts_anew():
    """Two steps to the goal and a limit of two; then one walker dawdles."""
    env = MDPEnv(gridworld("S.G"), num_envs=2, time_limit=2, obs="index")
    env.reset(0)
    env.step(torch.tensor([1, 1]))
    step = env.step(torch.tensor([1, 0]))
    assert step.last.tolist() == [True, True] and step.discount.tolist() == [0, 1]
    assert step.next_obs.tolist() == [2, 1] and step.obs.tolist() == [0, 0]
    assert env.step(torch.tensor([1, 1])).last.tolist() == [False, False]
    assert env.step(torch.tensor([0, 0])).last.tolist() == [True, True]


# -- observations


@pytest.mark.parametrize("convention", ["transition", "state"])
@pytest.mark.parametrize("form", FORMS)
def test_every_observation_leads_back_to_its_state(form, convention):
    mdp = gridworld(**FOUR, convention=convention)
    env = MDPEnv(mdp, num_envs=30, time_limit=9, obs=form)
    everywhere = torch.arange(len(mdp.start))
    looks = env.all_observations()
    assert looks.shape == (len(mdp.start), *env.spec.obs_shape) and looks.dtype == env.spec.obs_dtype
    assert torch.equal(env.states(looks), everywhere)
    assert torch.equal(env.states(torch.stack([looks, looks])), torch.stack([everywhere, everywhere]))
    assert torch.equal(env.states(env.reset(0)), env.state)
    for _ in range(12):
        step = env.step(torch.randint(4, (30,)))
        assert torch.equal(env.states(step.obs), env.state) and torch.equal(env.observe(), step.obs)
        assert torch.equal(step.next_obs[~step.last], step.obs[~step.last])


def test_what_each_form_shows():
    mdp = gridworld("S#.\nG.X", convention="state")  # states: S, floor, G, floor, X, and the end beyond the map
    show = {form: MDPEnv(mdp, 1, 9, obs=form).all_observations() for form in FORMS}
    assert show["index"].tolist() == [0, 1, 2, 3, 4, 5]
    assert torch.equal(show["one_hot"], torch.eye(6))
    assert show["coordinates"].tolist() == [[0, 0], [0, 1], [1, 0], [1, 0.5], [1, 1], [-1, -1]]
    walls, pays, costs = [[0, 1, 0], [0, 0, 0]], [[0, 0, 0], [1, 0, 0]], [[0, 0, 0], [0, 0, 1]]
    assert show["planes"][1].tolist() == [walls, [[0, 0, 1], [0, 0, 0]], pays, costs]
    assert show["planes"][5].tolist() == [walls, [[0, 0, 0], [0, 0, 0]], pays, costs]


def test_worlds_too_large_to_keep_their_looks_at_hand_look_the_same(monkeypatch):
    mdp = gridworld(**FOUR, convention="state")
    kept = [MDPEnv(mdp, 1, 9, obs=form).all_observations() for form in FORMS]
    monkeypatch.setattr("rl_lab.envs.tabular.stepper.AT_HAND", 0)
    assert all(torch.equal(MDPEnv(mdp, 1, 9, obs=f).all_observations(), k) for f, k in zip(FORMS, kept, strict=True))


def test_numbers_cost_nothing():
    """The observation is the state itself, not a copy, and a later step leaves it as it was."""
    env = MDPEnv(gridworld(**FOUR), 5, 9, obs="index")
    env.reset(0)
    step = env.step(torch.zeros(5, dtype=torch.int64))
    before = step.obs.clone()
    assert step.obs is env.state and env.spec[:3] == ((), torch.int64, ("up", "right", "down", "left"))
    env.step(torch.ones(5, dtype=torch.int64))
    assert torch.equal(step.obs, before)


def test_pictures_of_a_world_without_a_map_are_refused():
    for form in ("planes", "coordinates"):
        with pytest.raises(UserError, match=f"^env.obs={form} needs a map, and this world has none; use one_hot or"):
            MDPEnv(any_mdp(), 1, 9, obs=form)
    crowded = any_mdp()._replace(layout=gridworld(BOOK).layout)
    with pytest.raises(UserError, match="^env.obs=planes needs a cell for each state, and this world's 12 states lie"):
        MDPEnv(crowded._replace(layout=crowded.layout._replace(cells=((0, 0),) * 12)), 1, 9, obs="planes")


# -- the device


class NoSync(TorchDispatchMode):
    """Refuses what makes the host wait for the device: a number read, or a shape that depends on values."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique_dim", "_unique2"):
            raise RuntimeError(f"{name} waits for the device")
        if name.startswith("index") and any(i is not None and i.dtype == torch.bool for i in _indices(args)):
            raise RuntimeError(f"{name} by a mask waits for the device")
        return func(*args, **(kwargs or {}))


def _indices(args):
    return [i for arg in args if isinstance(arg, list | tuple) for i in arg if isinstance(i, torch.Tensor)]


@pytest.mark.parametrize(
    "read", [lambda x: x.item(), lambda x: x[x > 0], lambda x: bool(x.any()), lambda x: x.nonzero()]
)
def test_the_gate_sees_a_wait(read):
    with NoSync(), pytest.raises(RuntimeError, match="waits for the device"):
        read(torch.ones(1))


@pytest.mark.parametrize(
    ("mdp", "form"), [*((gridworld(**FOUR), form) for form in FORMS), (any_mdp(), "index"), (any_mdp(), "one_hot")]
)
def test_no_step_waits_for_the_device(mdp, form):
    env = MDPEnv(mdp, 8, 5, obs=form)
    obs = env.reset(0)
    with NoSync():
        for _ in range(6):
            obs = env.step(torch.randint(3, (8,))).obs
            env.states(obs)
    with FakeTensorMode(allow_non_fake_inputs=True), NoSync():
        env.step(torch.zeros(8, dtype=torch.int64))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_step_is_the_step(backend):
    """One graph, without a break."""
    if backend == "inductor" and not shutil.which(os.environ.get("CXX", "g++")):
        pytest.skip("torch.compile needs a C++ compiler")
    env = MDPEnv(gridworld(**FOUR), 100, 7, obs="index")
    env.reset(0)
    advance, walkers = torch.compile(env.advance, fullgraph=True, backend=backend), env.walkers
    for _ in range(15):
        draws, action = env.draw(), torch.randint(4, (100,))
        fast, plain = advance(walkers, action, *draws), env.advance(walkers, action, *draws)
        assert fast.duration is plain.duration is None
        assert all(torch.equal(a, b) for a, b in zip(fast[1:5] + fast[0], plain[1:5] + plain[0], strict=True))
        walkers = plain.walkers


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_step_is_captured_in_a_cuda_graph():
    mdp = gridworld(**FOUR)
    env = MDPEnv(mdp, 1_000, 7, obs="index", device="cuda")
    env.reset(0)
    walkers, action = Walkers(*(x.clone() for x in env.walkers)), torch.zeros(1_000, dtype=torch.int64, device="cuda")
    env.step(action)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(env.rng)
    with torch.cuda.graph(graph):
        answer = env.advance(walkers, action, *env.draw())
        before = walkers.state.clone()
        for kept, new in zip(walkers, answer.walkers, strict=True):
            kept.copy_(new)
    seen = []
    for a in range(8):
        action.fill_(a % 4)
        graph.replay()
        allowed = env.mdp.next_state[before, action]
        assert (allowed == answer.successor[:, None]).any(-1).all()
        seen.append(answer.successor.clone())
    assert len({tuple(s.tolist()) for s in seen}) == 8


def test_a_million_walkers():
    env = MDPEnv(gridworld(**FOUR), 1_000_000, 50, obs="index")
    env.reset(0)
    ended = sum(env.step(torch.full((1_000_000,), a)).last.sum().item() for a in (0, 0, 1, 1, 1, 1))
    assert 500_000 < ended < 1_000_000


# -- stopping and going on


@pytest.mark.parametrize("form", FORMS)
def test_a_restored_stepper_goes_on_as_if_nothing_happened(form):
    one, two = (MDPEnv(gridworld(**FOUR), num_envs=8, time_limit=7, obs=form) for _ in range(2))
    one.reset(0), two.reset(1)
    actions = torch.randint(4, (30, 8))
    for action in actions[:15]:
        one.step(action)
    two.load_state_dict({k: v.clone() for k, v in one.state_dict().items()})
    assert torch.equal(one.observe(), two.observe())
    for action in actions[15:]:
        ours, theirs = one.step(action)[:6], two.step(action)[:6]
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_state_of_other_walkers_is_refused():
    one, two = (MDPEnv(gridworld(**FOUR), n, 7) for n in (8, 9))
    one.reset(0)
    with pytest.raises(ValueError, match="8 walkers, not env.num_envs=9"):
        two.load_state_dict(one.state_dict())
