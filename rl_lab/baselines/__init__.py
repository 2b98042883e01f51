"""Other libraries as yardsticks, in our environments and on our axes."""
