"""Parts of autoregressive models: causal convolutions, likelihood heads, and what makes sampling fast."""
