"""What reads run folders: evaluate, record, render, watch, play."""
