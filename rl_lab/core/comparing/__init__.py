"""Comparisons of runs: who is compared with whom, the statistics, the tables and pictures, one page of all."""
