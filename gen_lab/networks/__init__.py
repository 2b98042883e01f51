"""Parts of models: coders, codebooks, causal convolutions; schedules of learning rates, averaged and best weights."""
