"""What reads run folders: sample, evaluate, latents, compare."""
