"""MDPs from elsewhere: tables, npz files, Gymnasium's toy texts."""

import gymnasium
import numpy as np
import pytest
import torch
from stated import stated
from test_worlds import build, sweeps, uniform, value_of

from rl_lab.core.errors import UserError
from rl_lab.envs.tabular.tables import from_tables, mdp_file

toy_text = stated("env/frozen_lake", "mdp", options=None)


def chain() -> dict[str, np.ndarray]:
    """Two states: 0 goes on with 1/2 to the end 1, which pays 1; both actions alike."""
    return {
        "next_state": np.array([[[0, 1]] * 2, [[1, 1]] * 2]), "probability": np.full((2, 2, 2), 0.5),
        "reward": np.array([[[0.0, 1.0]] * 2, [[0.0, 0.0]] * 2]), "terminal": np.array([False, True]),
        "start": np.array([1.0, 0.0]),
    }  # fmt: skip


def changed(name: str, at: tuple, value: float) -> dict[str, np.ndarray]:
    arrays = chain()
    arrays[name][at] = value
    return arrays


def test_npz_round_trip(tmp_path):
    path = tmp_path / "world.npz"
    np.savez(path, **chain(), note=np.array("extra arrays are left alone"))
    mdp = build("mdp_file", f"env.path={path}", "env.gamma=0.5")
    for name, array in chain().items():
        np.testing.assert_array_equal(getattr(mdp, name), array)
    assert mdp.actions == ("0", "1") and mdp.gamma == 0.5
    assert value_of(mdp, uniform(mdp))[0].item() == pytest.approx(2 / 3)  # v = 1/2 (1 + v / 2)


def test_any_gymnasium_table_by_id():
    mdp = build("toy_text", "env.id=CliffWalking-v1", "env.gamma=1", "+env.options.is_slippery=false")
    assert mdp.start @ sweeps(mdp, 100)[0] == -13 and mdp.gamma == 1


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, ": no such file; write one with numpy.savez, of next_state, probability, reward, terminal, start"),
        (b"text", ": not an npz file of numbers; write one with numpy.savez"),
        (b"", ": not an npz file of numbers; write one with numpy.savez"),
        (np.zeros(3), ": not an npz file of numbers; write one with numpy.savez"),
        ({"reward": np.array([print], dtype=object)}, ": not an npz file of numbers; write one with numpy.savez"),
        ({}, ": no array next_state; it holds none"),
        ({k: v for k, v in chain().items() if k != "start"}, ": no array start; it holds next_state, probability, reward, terminal"),
        (chain() | {"reward": chain()["reward"].astype(np.float32)}, ": reward must be float64, not float32"),
        (chain() | {"start": np.array([1.0])}, ": start must be float64 [2], not float64 [1]"),
        (chain() | {"next_state": np.zeros((2, 2), np.int64)}, ": next_state must be [states, actions, successors], not [2, 2]"),
        (chain() | {"next_state": np.zeros((2, 2, 0), np.int64)}, ": next_state must be [states, actions, successors], not [2, 2, 0]"),
        (changed("next_state", (0, 1, 1), 2), ": state 0, action 1 (1): leads to state 2, but there are states 0 to 1"),
        (changed("next_state", (0, 1, 0), -1), ": state 0, action 1 (1): leads to state -1, but there are states 0 to 1"),
        (changed("probability", (0, 1, 0), -0.5), ": state 0, action 1 (1): a probability of -0.5"),
        (changed("probability", (0, 0, 0), np.nan), ": state 0, action 0 (0): a probability of nan"),
        (changed("probability", (0, 1, 0), 0.4), ": state 0, action 1 (1): probabilities sum to 0.9, not 1; where an episode ends, lead to a terminal state that stays where it is"),
        (changed("reward", (0, 1, 0), np.inf), ": state 0, action 1 (1): a reward of inf"),
        (changed("next_state", (1, 0, 1), 0), ": state 1, action 0 (0): leads on to state 0, though the state is terminal: let it stay where it is"),
        (changed("reward", (1, 1, 0), 3), ": state 1, action 1 (1): pays 3, though the state is terminal: pay on entering it instead"),
        (changed("start", (0,), 0.5), ": start must be a distribution, but sums to 0.5"),
        (chain() | {"start": np.array([1.5, -0.5])}, ": start gives state 1 a probability of -0.5"),
        (changed("start", (0,), np.nan), ": start gives state 0 a probability of nan"),
        (chain() | {"start": np.array([0.5, 0.5])}, ": an episode would start in state 1, which is terminal"),
    ],
)  # fmt: skip
def test_impossible_files(content, line, tmp_path):
    path = tmp_path / "world.npz"
    if isinstance(content, dict):
        np.savez(path, **content)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        with path.open("wb") as file:
            np.save(file, content)
    with pytest.raises(UserError) as error:
        mdp_file(str(path))
    assert str(error.value) == f"{path}{line}"


def test_impossible_tables():
    for arguments, line in {
        ("gamma", 1.5): "mdp: gamma must be between 0 and 1, not 1.5",
        ("actions", ("a",)): "mdp: 1 name for 2 actions",
        ("probability", torch.ones(2, 2, 2)): "mdp: probability must be float64 [2, 2, 2], not float32 [2, 2, 2]",
    }.items():
        with pytest.raises(UserError) as error:
            from_tables(**chain() | {arguments[0]: arguments[1]})
        assert str(error.value) == line
    assert from_tables(**chain(), actions=["go", "wait"]).actions == ("go", "wait")


# -- Gymnasium's toy texts


class Table(gymnasium.Env):
    """Two actions; state 1 is entered by a done transition and by one that is not, 2 by done ones alone."""

    observation_space, action_space = gymnasium.spaces.Discrete(4), gymnasium.spaces.Discrete(2)
    initial_state_distrib = None

    def __init__(self, second: float = 0.75):
        go = {0: [(0.25, 1, 1.0, True), (second, 1, 0.0, False)], 1: [(0.5, 2, 5.0, True), (0.5, 2, 5.0, True)]}
        on = {0: [(1.0, 3, 0.0, False)], 1: [(0.5, 2, 2.0, True), (0.5, 2, 3.0, True)]}
        dead = {a: [(1.0, 1, 9.0, False)] for a in range(2)}  # never followed: 2 is an end
        self.P = {0: go, 1: on, 2: dead, 3: on}


def test_done_belongs_to_a_transition():
    gymnasium.register("Table-v0", Table)
    gymnasium.register("Strange-v0", lambda: Table(0.5))
    try:
        mdp = toy_text("Table-v0")
        with pytest.raises(UserError) as error:
            toy_text("Strange-v0")
    finally:
        del gymnasium.registry["Table-v0"], gymnasium.registry["Strange-v0"]
    assert str(error.value).startswith("Strange-v0: state 0, action 0 (0): probabilities sum to 0.75, not 1")
    assert mdp.terminal.tolist() == [False, False, True, False, True]
    assert mdp.next_state[0].tolist() == [[4, 1], [2, 0]]
    assert mdp.probability[0].tolist() == [[0.25, 0.75], [1.0, 0.0]]
    assert mdp.next_state[1, 1].tolist() == [2, 2] and mdp.reward[1, 1].tolist() == [2.0, 3.0]  # differ: kept apart
    assert mdp.next_state[2].tolist() == [[2, 2], [2, 2]] and not mdp.reward[2].any()
    torch.testing.assert_close(mdp.start, torch.tensor([1, 1, 0, 1, 0]).double() / 3)


def test_what_a_live_state_enters_undone_lives(monkeypatch):
    """0 enters 1 both ways, so 1 lives; and therefore 2, which 1 enters both ways; 2 alone says done on itself."""
    both = [[(0.5, s, 0.0, True), (0.5, s, 0.0, False)] for s in (1, 2)]
    table = Table()
    table.P = {0: {0: both[0]}, 1: {0: both[1]}, 2: {0: [(1.0, 2, 1.0, True)]}}
    monkeypatch.setitem(gymnasium.registry, "Table-v0", gymnasium.envs.registration.EnvSpec("Table-v0", lambda: table))
    mdp = toy_text("Table-v0")
    assert mdp.terminal.tolist() == [False, False, False, True]
    assert mdp.next_state[:, 0].tolist() == [[3, 1], [3, 2], [3, 2], [3, 3]] and mdp.reward[2, 0, 0] == 1


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: toy_text("FrozenLak-v1"), "no Gymnasium environment 'FrozenLak-v1'; did you mean FrozenLake-v1?"),
        (lambda: toy_text("CartPole-v1"), "CartPole-v1 has no table P, so no planner can solve it; agents learn in it with env=gym env.id=CartPole-v1"),
        (lambda: toy_text("os:Nowhere/X-v0"), "no Gymnasium environment 'Nowhere/X-v0'; env.id=<module>:Nowhere/X-v0 imports the package that registers it"),
        (lambda: toy_text("FrozenLake-v1", options={"slip": 1}), "gymnasium.make refuses id=FrozenLake-v1 with options={'slip': 1} (TypeError: "),
    ],
)  # fmt: skip
def test_impossible_toy_texts(make, line):
    with pytest.raises(UserError) as error:
        make()
    assert str(error.value) == line or (line.endswith(": ") and str(error.value).startswith(line))
    assert "\n" not in str(error.value)
