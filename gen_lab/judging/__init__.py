"""Honest measures of samples: how far from the data, how varied, how much of it copied."""

from gen_lab.judging.judge import Judge, nothing
from gen_lab.judging.seeing import NoLabels

__all__ = ["Judge", "NoLabels", "nothing"]
