"""What things look like: worlds, values and policies, charts, films."""
