"""Which recorded arguments a stranger's study may repeat: none by which Hydra could be made to run code."""

import re

# Of a recorded command line, what resuming repeats: settings of a run, and who launches the jobs.
REPLAYED = re.compile(
    r"-m|--multirun|(?![~+]*hydra\b)[^-].*|hydra/(launcher|sweeper)(/\w+)*=\w+|hydra\.mode=\w+"
    r"|hydra\.(launcher|sweeper)\.(n_jobs=-?\d{1,2}|n_trials=.*|max_batch_size=.*|params\..*=.*)"
)
WORDS = re.compile(r"[\w ,.()\[\]'\"+:*-]*")  # the value of a setting without dots may be the name of a file in conf/


def is_followed(argument: str) -> bool:
    """Not what looks up variables (`$`), puts a config elsewhere (`@`), or chooses a file by its path."""
    key, _, value = argument.partition("=")
    by_name = "." in key or (WORDS.fullmatch(value) and ".." not in value)
    return bool(REPLAYED.fullmatch(argument) and "$" not in argument and "@" not in key and by_name)
