"""A run folder becomes a model again."""
