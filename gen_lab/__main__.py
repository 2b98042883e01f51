"""gen-lab train experiment=vae_digits seed=1"""

import sys

COMMANDS = {
    "data": "every data set: a line each; which files are at hand, and where those that are missing would come from",
    "models": "every model: a line each, and the file and the paper behind it",
    "experiments": "every experiment: a line each, with its score and what it took, where that was measured",
    "train": "train a model, or resume its training: run=<folder>",
    "sample": "draw from what a run learned: samples, one class, completed images, a film",
    "evaluate": "score the whole test set, and compare samples with held-out images",
    "latents": "pictures of what an autoencoder's latents mean: traversals, interpolations, a map",
    "study": "a study's jobs and what came of each; study resume <folder> runs what is missing",
    "reproduce": "make a claim of tests/bench/results/README.md again: its runs, and their figures beside those kept",
    "compare": "all measures of several runs in one table, and learning curves",
}


def main() -> int:
    try:
        from rl_lab.core.launching import cli

        return cli.program("gen-lab", "gen", COMMANDS)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
