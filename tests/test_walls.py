"""The walls of the house: who may import whom."""

import ast
import re
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
WORLDS = (
    "rl_lab.envs.tabular.stepper",
    "rl_lab.envs.collect.world",
    "rl_lab.envs.classic.stepper",
    "rl_lab.envs.gym",
    "rl_lab.envs.atari",
)
# Of each lab from the ground up; a room imports from the floors below its own alone.
FLOORS = {
    "rl_lab": [
        {"core"},
        {"parts", "types", "returns", "losses"},
        {"networks", "memory", "envs"},
        {"planning"},
        {"agents", "wanted"},
        {"looking"},
        {"loops", "playing", "gymnasium_api", "doctor"},
        {"commands"},
        {"__init__", "__main__"},
    ],
    "gen_lab": [
        {"parts", "types", "losses"},
        {"networks", "data"},
        {"models", "judging", "trained"},
        {"fit"},
        {"commands"},
        {"__init__", "__main__"},
    ],
}
UPSTAIRS = "rl_lab.core.launching", "rl_lab.core.studies", "rl_lab.core.comparing"


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def arrows(lab: str) -> set[tuple[str, str]]:
    """Between the rooms of a lab: who imports whom."""
    pairs = {(name, other) for name, others in GRAPH.items() for other in others if inside(name, lab)}
    return {(room(a), room(b)) for a, b in pairs if inside(b, lab) and room(a) != room(b)}


@pytest.mark.parametrize("lab", FLOORS)
def test_no_arrow_runs_up_the_floor_plan(lab):
    floor = {room: i for i, rooms in enumerate(FLOORS[lab]) for room in rooms}
    assert not {(a, b) for a, b in arrows(lab) if floor[a] <= floor[b]}
    assert {room(name) for name in MODULES if inside(name, lab)} <= {*floor}


def test_rooms_stand_in_at_most_seven_layers_above_core():
    outside = "core", "parts", "__init__", "__main__"
    graph = {room(name): set() for name in MODULES if inside(name, "rl_lab") and room(name) not in outside}
    for a, b in arrows("rl_lab"):
        if a in graph and b in graph:
            graph[a].add(b)
    assert layers(graph) <= 7


@pytest.mark.parametrize(
    ("room", "forbidden", "but"),
    [
        ("rl_lab.core", ("rl_lab", "gen_lab"), ("rl_lab.core",)),
        ("gen_lab", ("rl_lab",), ("rl_lab.core",)),
        ("rl_lab", ("gen_lab",), ()),
        ("rl_lab.agents", ("rl_lab.envs",), ()),
        *((room, WORLDS, ()) for room in ("rl_lab.looking", "rl_lab.playing", "rl_lab.gymnasium_api")),
    ],
)
def test_walls(room, forbidden, but):
    through = {
        (name, other)
        for name, others in GRAPH.items()
        if inside(name, room)
        for other in others
        if inside(other, *forbidden) and not inside(other, *but)
    }
    assert not through


def test_the_ground_of_core_knows_nothing_of_what_stands_on_it():
    ground = [name for name in MODULES if inside(name, "rl_lab.core") and not inside(name, *UPSTAIRS)]
    assert not {(name, other) for name in ground for other in GRAPH[name] if inside(other, *UPSTAIRS)}


def test_core_names_neither_lab():
    """Labs declare themselves; what core knows of them by a text of its own is the format of its files."""
    found = set()
    for name, path in MODULES.items():
        tree = ast.parse(path.read_text()) if inside(name, "rl_lab.core") else ast.Module([], [])
        prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in prose]
        found |= {
            node.value for node in texts if isinstance(node.value, str) and re.search("rl_lab|gen_lab", node.value)
        }
    assert found == {"rl_lab checkpoint 1", "rl_lab recording 1", "rl_lab run folder 1"}


def layers(graph: dict[str, set[str]]) -> int:
    """How many times what imports nothing of the rest can be taken away."""
    count = 0
    while graph:
        floor = {name for name, others in graph.items() if not others & set(graph)}
        assert floor, f"a cycle among {sorted(graph)}"
        graph = {name: others for name, others in graph.items() if name not in floor}
        count += 1
    return count


def test_no_cycles():
    assert layers(GRAPH) <= 12


def test_the_walls_are_read_from_the_code():
    assert "rl_lab.core.run" in GRAPH["rl_lab.loops.training"] and "rl_lab.core.learner" in GRAPH["rl_lab.agents.dqn"]


def test_config_stops_at_the_door():
    """Nothing outside those who compose it and those who open run folders takes a config."""
    takers = {name for name, path in MODULES.items() if "cfg" in path.read_text().replace("--cfg", "")}
    assert takers <= {
        "rl_lab.core.launching.execution",
        "rl_lab.core.launching.rehearsal",
        "rl_lab.core.launching.building",
        "rl_lab.core.launching.commanding",
        "rl_lab.core.launching.composed",
        "rl_lab.core.launching.patches",
        "rl_lab.core.launching.launch",
        "rl_lab.core.launching.composition",
        "rl_lab.core.launching.arguments",
        "rl_lab.core.reading",
        "rl_lab.core.launching.changes",
        "rl_lab.core.launching.explain",
        "rl_lab.core.launching.meant",
        "rl_lab.playing.player",
        "gen_lab.trained.loading",
    }
