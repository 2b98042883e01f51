"""A run folder becomes something that plays and is seen."""
