"""Parts of models: coders, codebooks, causal convolutions, averaged and best weights."""
