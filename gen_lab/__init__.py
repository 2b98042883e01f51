"""Generative models of images: data, likelihoods, models, and the one loop that fits them."""
