"""Learners that act. Each file is its paper: constructor, act, update, learn, error, in that order."""
