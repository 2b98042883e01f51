"""rl-lab train experiment=dqn_four_rooms seed=1"""

import sys

COMMANDS = {
    "envs": "every environment: a line each, and the file behind it",
    "agents": "every agent: a line each, and the file and the paper behind it",
    "experiments": "every experiment: a line each, with its score and what it took, where that was measured",
    "train": "run an experiment, or resume one: run=<folder>",
    "evaluate": "play greedy episodes with what a run learned, or with anyone's agent: agent=my_agent:Mine env=<name>",
    "watch": "watch a run while it learns, in the browser or in the terminal",
    "play": "play by keyboard, the agent's values beside you: run=<folder> or env=<name>",
    "teach": "say which of two clips is better, to a run that learns from it (teacher=person)",
    "render": "film what a run learned, several runs side by side",
    "record": "keep episodes of a run, or random ones (env=atari env.game=pong), as npz shards",
    "doctor": "what is wrong with an environment, or with an agent: env=<name> or agent=<name>",
    "export": "write a run's greedy policy to=policy.pt2 or .onnx, to be used without this lab",
    "study": "a study's jobs and what came of each; study resume <folder> runs what is missing",
    "reproduce": "make a claim of tests/bench/results/README.md again: its runs, and their figures beside those kept",
    "compare": "tables, curves and one page of many runs, over one task or several",
}


def main() -> int:
    try:
        from rl_lab.core.launching import cli

        return cli.program("rl-lab", "rl", COMMANDS)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
