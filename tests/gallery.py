"""README's pictures, made anew by the code as it is: `make gallery`, or python tests/gallery.py <picture> ...

What they show is trained where runs/of_gallery does not hold it yet: minutes for most, half an hour for Collect, for
the study of four worlds and for each model of Fashion-MNIST, two hours for MNIST and for CIFAR-10. `made.json` beside
the pictures holds a digest of the code that drew each, and of the picture; tests/test_gallery.py compares them.
"""

import ast
import hashlib
import io
import json
import os
import shutil
import sys
import tokenize
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
HOME = Path("runs/gallery")
RUNS = Path("runs/of_gallery")
MADE = ROOT / HOME / "made.json"

FILMS = ("rl_lab/looking/films.py", "rl_lab/looking/heat.py", "rl_lab/looking/panels.py", "rl_lab/looking/pictures.py",
         "rl_lab/looking/sprites.py", "rl_lab/looking/trees.py", "rl_lab/looking/worlds.py",
         "rl_lab/playing/scenes.py", "rl_lab/commands/render.py", "rl_lab/core/style.py")  # fmt: skip
PAGES = ("rl_lab/core/comparing/*.py", "rl_lab/core/style.py")
SHEETS = ("gen_lab/commands/sample.py", "gen_lab/judging/pictures.py", "rl_lab/core/style.py")
REWARDS = "-2", "-0.6", "-0.2", "-0.04", "-0.01", "0.02"
LIVING = "rl-lab train experiment=value_iteration_russell_norvig name=living_reward env.mdp.gamma=0.999"
STUDY = (
    "rl-lab train study=gridworlds agent=dqn,a2c,ppo,reinforce env=russell_norvig,frozen_lake,cliff_walking,four_rooms "
    "seed=0,1,2 loop.total_steps=100_000 loop.eval_every=10_000"
)


class Picture(NamedTuple):
    """A file of README's, what is trained for it, and the commands that draw it from there."""

    code: tuple[str, ...]  # the files that draw it
    runs: dict[str, str]  # folder under RUNS -> command
    draw: tuple[str, ...]
    made: tuple[str, ...] = ()  # where they leave other files: which of them, one above the other, it is


GALLERY = {
    "four_rooms.gif": Picture(
        FILMS,
        {"value_iteration": "rl-lab train experiment=value_iteration_four_rooms",
         "dqn": "rl-lab train experiment=dqn_four_rooms loop.total_steps=150_000"},
        (f"rl-lab render {RUNS}/value_iteration {RUNS}/dqn episodes=2 out={HOME}/four_rooms.mp4",),
    ),
    "living_reward.png": Picture(
        FILMS,
        {f"living_reward/{i}": f"{LIVING} env.mdp.living_reward={x}" for i, x in enumerate(REWARDS)},
        (f"rl-lab render {' '.join(f'{RUNS}/living_reward/{i}' for i in range(len(REWARDS)))} "
         f"out={HOME}/living_reward.png",),
    ),
    "pong.gif": Picture(
        FILMS,
        {"pong": "rl-lab train experiment=pong seed=1"},
        (f"rl-lab render {RUNS}/pong episodes=1 max_steps=600 out={HOME}/pong.mp4",),
    ),
    "collect.gif": Picture(
        FILMS,
        {"collect": "rl-lab train experiment=vpn3_collect_small"},
        (f"rl-lab render run={RUNS}/collect agent.branch_depth=3 episodes=2 seed=11 fps=1 out={HOME}/collect.mp4",),
    ),
    "mnist.png": Picture(
        SHEETS,
        {"mnist": "gen-lab train experiment=gated_pixelcnn_mnist loop.compile=true"},
        (f"gen-lab sample run={RUNS}/mnist count=72 columns=18 seed=3 out={RUNS}/sheets",
         f"gen-lab sample run={RUNS}/mnist count=24 columns=18 seed=1 inpaint=top out={RUNS}/sheets"),
        (f"{RUNS}/sheets/gated_pixelcnn_mnist_samples_seed3_count72.png",
         f"{RUNS}/sheets/gated_pixelcnn_mnist_inpainted_top_seed1_count24.png"),
    ),
    "fashion.png": Picture(
        SHEETS,
        {"fashion/dcgan": "gen-lab train experiment=dcgan_fashion",
         "fashion/vqvae": "gen-lab train experiment=vqvae_fashion"},
        (f"gen-lab sample run={RUNS}/fashion/dcgan count=54 columns=18 seed=1 out={RUNS}/sheets",
         f"gen-lab sample run={RUNS}/fashion/vqvae count=54 columns=18 seed=1 out={RUNS}/sheets"),
        (f"{RUNS}/sheets/dcgan_fashion_samples_seed1_count54.png", f"{RUNS}/sheets/vqvae_fashion_samples_seed1_count54.png"),
    ),
    "cifar.png": Picture(
        SHEETS,
        {"cifar": "gen-lab train experiment=pixelcnnpp_cifar10"},
        (f"gen-lab sample run={RUNS}/cifar count=54 columns=18 seed=1 out={RUNS}/sheets",),
        (f"{RUNS}/sheets/pixelcnnpp_cifar10_samples_seed1_count54.png",),
    ),
    "gridworlds.png": Picture(
        PAGES,
        {"gridworlds": STUDY},
        (f"rl-lab compare {RUNS}/gridworlds metric=eval/regret out={RUNS}/compared_gridworlds",),
        (f"{RUNS}/compared_gridworlds/aggregates.png", f"{RUNS}/compared_gridworlds/profiles.png"),
    ),
}  # fmt: skip


def digest_of_code(patterns: tuple[str, ...]) -> str:
    """Of what the files do: comments, docstrings and layout do not count."""
    total = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in ROOT.glob(pattern)}):
        total.update(f"{path.relative_to(ROOT)}\n{bare(path.read_text())}\n".encode())
    return total.hexdigest()[:16]


def bare(code: str) -> str:
    """Without comments, docstrings and white space; the same by every version of Python."""
    lines = code.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(code)):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and first.end_lineno:
            lines[first.lineno - 1 : first.end_lineno] = [""] * (first.end_lineno - first.lineno + 1)
    return "".join("".join(lines).split())


def digest_of_picture(name: str) -> str:
    return hashlib.sha256((ROOT / HOME / name).read_bytes()).hexdigest()[:16]


def made() -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = json.loads(MADE.read_text()) if MADE.exists() else {}
    return found


def make(name: str) -> None:
    picture = GALLERY[name]
    for folder, command in picture.runs.items():
        if not (ROOT / RUNS / folder / "done").exists():
            shutil.rmtree(ROOT / RUNS / folder, ignore_errors=True)
            place = "hydra.sweep.dir" if "seed=0," in command else "hydra.run.dir"
            _run(f"{command} tracker=none {place}={RUNS / folder}")
            (ROOT / RUNS / folder / "done").touch()
    for path in picture.made:
        shutil.rmtree((ROOT / path).parent, ignore_errors=True)
    for command in picture.draw:
        _run(f"{command} tracker=none")
    if picture.made:
        _stacked([ROOT / path for path in picture.made], ROOT / HOME / name)
    entry = {"code": digest_of_code(picture.code), "picture": digest_of_picture(name)}
    MADE.write_text(json.dumps({**made(), name: entry}, indent=2, sort_keys=True) + "\n")
    print(f"{HOME / name}: made")


def _run(command: str) -> None:
    from rl_lab.core.launching import cli

    print(command, flush=True)
    lab, *words = command.split()
    package = import_module(f"{lab.replace('-', '_')}.__main__")
    if fault := cli.main(lab, lab.removesuffix("-lab"), package.COMMANDS, words):
        sys.exit(fault)


def _stacked(paths: list[Path], out: Path) -> None:
    """The pictures one above the other, as wide as README shows them, twice as fine."""
    from PIL import Image

    pictures = [Image.open(path).convert("RGB") for path in paths]
    width = max(p.width for p in pictures)
    page = Image.new("RGB", (width, sum(p.height for p in pictures)), "white")
    y = 0
    for p in pictures:
        page.paste(p, (0, y))
        y += p.height
    page.save(out, optimize=True)


def main() -> None:
    os.chdir(ROOT)
    names = sys.argv[1:] or [*GALLERY]
    if unknown := [name for name in names if name not in GALLERY]:
        sys.exit(f"no picture {unknown[0]}; choose from {', '.join(GALLERY)}")
    for name in names:
        make(name)


if __name__ == "__main__":
    main()
