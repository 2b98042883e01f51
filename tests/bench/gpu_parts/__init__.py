"""The parts of tests/bench/gpu.py: each takes (device, seconds, note, small), and notes what it finds."""
