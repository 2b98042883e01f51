"""Parts of models: coders, codebooks, causal convolutions."""
