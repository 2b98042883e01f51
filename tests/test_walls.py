"""The walls of the house: who may import whom."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for lab in ("rl_lab", "gen_lab")
    for path in (ROOT / lab).rglob("*.py")
}


def imports(path: Path) -> Iterator[str]:
    """Every module of ours that `path` imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module for name in names if node.module in MODULES)


GRAPH = {name: set(imports(path)) - {name} for name, path in MODULES.items()}


def inside(module: str, *rooms: str) -> bool:
    return any(f"{module}.".startswith(f"{room}.") for room in rooms)


# Who shows worlds asks what they declare (envs.abilities), never which they are.
WORLDS = "rl_lab.envs.tabular.stepper", "rl_lab.envs.collect.world", "rl_lab.envs.gym", "rl_lab.envs.atari"


@pytest.mark.parametrize(
    ("room", "forbidden", "but"),
    [
        ("rl_lab.core", ("rl_lab", "gen_lab"), ("rl_lab.core",)),
        ("gen_lab", ("rl_lab",), ("rl_lab.core",)),
        ("rl_lab", ("gen_lab",), ()),
        ("rl_lab.agents", ("rl_lab.envs", "rl_lab.loops"), ()),
        ("rl_lab.envs", ("rl_lab.agents", "rl_lab.loops"), ()),
        *((room, WORLDS, ()) for room in ("rl_lab.looking", "rl_lab.playing", "rl_lab.gymnasium_api")),
    ],
)
def test_walls(room, forbidden, but):
    through = {
        (name, other)
        for name, others in GRAPH.items() if inside(name, room)
        for other in others if inside(other, *forbidden) and not inside(other, *but)
    }  # fmt: skip
    assert not through


def test_no_cycles():
    graph, layers = {name: set(others) for name, others in GRAPH.items()}, 0
    while graph:
        floor = {name for name, others in graph.items() if not others & set(graph)}
        assert floor, f"a cycle among {sorted(graph)}"
        graph = {name: others for name, others in graph.items() if name not in floor}
        layers += 1
    assert layers <= 12


def test_the_walls_are_read_from_the_code():
    assert "rl_lab.core.run" in GRAPH["rl_lab.loops.training"] and "rl_lab.core.learner" in GRAPH["rl_lab.agents.dqn"]


def test_config_stops_at_the_door():
    """Nothing outside those who compose it and those who open run folders takes a config."""
    takers = {name for name, path in MODULES.items() if "cfg" in path.read_text().replace("--cfg", "")}
    assert takers <= {
        "rl_lab.core.launching.execution",
        "rl_lab.core.launching.launch",
        "rl_lab.core.launching.composition",
        "rl_lab.core.launching.arguments",
        "rl_lab.core.reading",
        "rl_lab.core.launching.changes",
        "rl_lab.core.launching.explain",
        "rl_lab.playing.player",
        "gen_lab.trained.loading",
    }
