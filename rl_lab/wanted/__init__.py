"""Learning what is wanted instead of being told: from demonstrations, from a reward for another world, from answers."""
