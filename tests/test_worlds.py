"""The worlds: maps, classics, and MDPs from elsewhere."""

import pytest

from rl_lab.core.errors import UserError
from rl_lab.envs.gridworld import gridworld


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"map": "S.\n..."}, "env.mdp.map: its rows must be of one length, not [2, 3]"),
        ({"map": "S?"}, "env.mdp.map: no meaning for ?; give it one in env.mdp.rewards"),
        ({"map": "..G"}, "env.mdp.map: no start cell; mark at least one with S"),
    ],
)
def test_impossible_maps(arguments, line):
    with pytest.raises(UserError) as error:
        gridworld(**arguments)
    assert str(error.value) == line
