"""Rewards learned from answers: which of two clips a teacher prefers."""
