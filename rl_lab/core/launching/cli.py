"""The command line of both labs: what there is, where to read more, and the exit code."""

import atexit
import gc
import os
import signal
import sys
from importlib.util import find_spec
from pathlib import Path

from rl_lab.core import conf_dir, interrupts
from rl_lab.core.errors import FULL, WINDOWS, UserError, nearest, printable, refuse_undecoded
from rl_lab.core.launching.composition import groups, names, own_folder
from rl_lab.core.launching.listing import LISTS, experiments, listing


def program(prog: str, root: str, commands: dict[str, str]) -> int:
    """`main` of a process that does nothing else."""
    for number in interrupts.heard():
        signal.signal(number, interrupts.stopped)
    interrupts.lasting_errors()
    gc.set_threshold(50_000)  # what is imported stays: looking for garbage in it takes a tenth of a start
    atexit.register(_leave)
    try:
        code = main(prog, root, commands)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        interrupts.to_nowhere(1)
        return 0
    except OSError as error:
        if error.errno not in FULL or error.filename:
            raise
        interrupts.to_nowhere(1)
        print(
            f"{prog}: cannot write to standard output: {error.strerror}; make room, then type it again", file=sys.stderr
        )
        return 2


def _leave() -> None:
    """Looking for garbage at the end takes a tenth more, and the system takes everything back anyway; but the emulator
    of Atari's games complains on standard error of what was not.
    """
    if "ale_py" not in sys.modules:
        gc.freeze()


def main(prog: str, root: str, commands: dict[str, str], arguments: list[str] | None = None) -> int:
    """Returns 0, 2 for a user's mistake, 128 + n for signal n. A fault of ours is raised with its traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in ("-sc", "--shell-completion"):
        if not [words for words in arguments[1:2] if words.partition("=")[0] in ("install", "uninstall", "query")]:
            print(f'{prog}: -sc goes with a shell: eval "$({prog} -sc install=bash)"', file=sys.stderr)
            return 2
        return complete(prog, root, commands, arguments)
    try:
        if find_spec("fcntl") is None:
            raise UserError(WINDOWS)
        for words in (*arguments, _here()):
            refuse_undecoded(words)
        if not arguments or arguments[0] in ("-h", "--help", "help"):
            print(overview(prog, root, commands))
            return 0
        if arguments[0] in ("-V", "version") or "--version" in arguments:
            print(version(prog))
            return 0
        name, rest = arguments[0], arguments[1:]
        if name not in commands:
            raise UserError(f"no command '{name}'{nearest(name, commands)}")
        if {"-h", "--help"} & set(rest):
            print(train_help(prog, root, rest) if name == "train" else command_help(prog, root, name, commands[name]))
            return 0
        if name in LISTS:
            more, given = _command_yaml(root, name).is_file(), any("=" in word for word in rest)
            if not (more and given):
                print(listing(prog, root, name, rest))
            if not more or (rest and not given):
                return 0
        if name == "reproduce" and not rest:
            from rl_lab.core.launching.reproducing import listed

            print(listed(prog, root))
            return 0
        from rl_lab.core.launching import commanding, launch  # here, as Hydra takes long to import

        if name == "train":
            return launch.train_together(prog, root, rest)
        elif name == "reproduce":
            from rl_lab.core.launching.reproducing import reproduce

            return reproduce(prog, root, rest[0], rest[1:], launch.train)
        elif name == "study" and rest[:1] == ["resume"]:
            return launch.resume_study(prog, root, rest[1:])
        else:
            return commanding.command(root, name, rest)
    except UserError as error:
        print(f"{prog}: {printable(str(error))}", file=sys.stderr)
        return 2
    except PermissionError as error:
        from rl_lab.core import files

        if not files.is_closed(error.filename):
            raise
        print(f"{prog}: {printable(str(files.unread(error)))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        return 128 + getattr(stop, "number", signal.SIGINT)


def _here() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        raise UserError("the folder that this terminal is in was removed; cd to another") from None


def overview(prog: str, root: str, commands: dict[str, str]) -> str:
    """The commands, and every experiment with the first line of its YAML's comment."""
    lines = [f"{prog} <command> [setting=value ...]", ""]
    lines += [f"  {name:<12} {text}" for name, text in commands.items()]
    lines += ["", f"experiments ({prog} train experiment=<name>)", ""]
    found = list(experiments(root))
    width = max((len(name) for name, _ in found), default=0)
    lines += [f"  {name:<{width}}  {text}" for name, text in found]
    lines += [
        "",
        f"settings of an experiment: {prog} train experiment=<name> --help",
        f'tab completion (bash): eval "$({prog} -sc install=bash)"',
    ]
    return "\n".join(lines)


def version(prog: str) -> str:
    """Of the program, and the revision of its checkout where it has one."""
    from importlib import metadata

    from rl_lab.core.provenance import revision

    number, commit = metadata.version("rl-lab"), revision()
    return f"{prog} {number}" + f" ({commit})" * bool(commit)


def command_help(prog: str, root: str, name: str, what: str) -> str:
    if name == "reproduce":
        return (f"{prog} reproduce [row] [hydra.* device= tracker=]    {what}\n\nWithout a row it lists them. The runs "
                "are a study; one that was stopped goes on by the same command.")  # fmt: skip
    words = f"{prog} {name} [word ...]    {what}\n\nWith words, only the lines that hold all of them."
    if name in LISTS and not _command_yaml(root, name).is_file():
        return words
    settings = _command_yaml(root, name).read_text().rstrip("\n")
    if name in LISTS:
        return f"{words}\n\n{settings}"
    examples = [line for line in settings.splitlines() if line.startswith(f"#   {prog} {name}")]
    of_one = not examples or any("run=<folder>" in line for line in examples)
    folder = "run=<folder> " if of_one else "<folder> ... " if any("<folder>" in line for line in examples) else ""
    return f"{prog} {name} {folder}[setting=value ...]    {what}\n\n{settings}"


def _command_yaml(root: str, name: str) -> Path:
    return conf_dir() / f"command/{root}/{name}.yaml"


def train_help(prog: str, root: str, typed: list[str]) -> str:
    """The groups, their choices, and every setting as it would stand with what was `typed`."""
    from rl_lab.core.launching.annotated import annotated
    from rl_lab.core.launching.explain import plain_errors
    from rl_lab.core.launching.own import check_own

    if several := [word for word in typed if word in ("-m", "--multirun")]:
        raise UserError(f"--help shows the settings of one run; leave out {several[0]}, and give one value of each")
    if runs := [word for word in typed if word.startswith("run=")]:
        raise UserError(f"the settings of {runs[0]} are in its config.yaml; --help shows those of a new run")
    own, overrides = own_folder(typed), [word for word in typed if "=" in word and not word.startswith("-")]
    if own and not own.is_dir():
        raise UserError(f"--config-dir={own} is not a folder; give it one that holds agent/, env/ and so on")
    check_own(own, overrides)
    with plain_errors(conf_dir(), root, typed):
        settings = annotated(root, overrides, own)
    lines = [
        f"{prog} train [group=choice ...] [setting=value ...]     run an experiment",
        f"{prog} train run=<folder> [setting=value ...]           resume one",
        f"{prog} train -m seed=0,1,2 experiment=a,b               run every combination",
        "",
        "groups and their choices",
        "",
    ]
    for group in groups(root):
        mine = [path.stem for path in sorted(own.glob(f"{group}/*.yaml"))] if own else []
        lines.append(f"  {group:<11} {', '.join([*names(root, group), *mine])}")
    return "\n".join(
        [
            *lines,
            "",
            "settings as they stand (agent.gamma=0.97 sets one, +key=value one left at its default)",
            "",
            settings,
        ]
    )


def complete(prog: str, root: str, commands: dict[str, str], arguments: list[str]) -> int:
    """Hydra completes the settings; the command word and run folders are completed here."""
    line = os.environ.get("COMP_LINE", "")
    words = line.split()
    typing = "" if line.endswith(" ") or not words else words[-1]
    if "query" in arguments[1:][-1] and line:
        if len(words) - bool(typing) == 1:
            print(" ".join(c for c in commands if c.startswith(typing)))
            return 0
        if typing.startswith("run=") or words[1] != "train":
            found = sorted(Path("runs").glob("*/*/config.yaml"))
            print(" ".join(f"run={p.parent}" for p in found if f"run={p.parent}".startswith(typing)))
            return 0
        os.environ["COMP_LINE"] = line.replace(f" {words[1]} ", " ", 1)
        os.environ["COMP_POINT"] = str(len(os.environ["COMP_LINE"]))
    from rl_lab.core.launching import launch

    launch.complete(prog, root, arguments)
    return 0
