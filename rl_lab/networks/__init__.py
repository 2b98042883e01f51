"""Networks by their parts: torsos, heads, tiles; and the optimizers that are not torch's."""
