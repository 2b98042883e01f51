"""What is wanted, learned instead of told: from demonstrations, from a reward for another world, from answers."""
