"""Networks in parts: torsos, heads, tiles; and optimizers that torch does not have."""
