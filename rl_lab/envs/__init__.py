"""Worlds: finite MDPs as tensors, Atari, and any Gymnasium environment with discrete actions."""
