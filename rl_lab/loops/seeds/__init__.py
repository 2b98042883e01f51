"""Many seeds of one agent, trained side by side as one batch."""
