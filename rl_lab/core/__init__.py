"""The ground both labs stand on: the run folder, checkpoints, tracking, settings, launching. Imports neither lab."""
