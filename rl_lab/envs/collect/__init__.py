"""Collect (Oh, Singh and Lee, 2017)."""
