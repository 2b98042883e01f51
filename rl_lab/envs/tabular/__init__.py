"""Worlds that are tables of probabilities, and what samples them."""
