"""The GPU check: runs the real stages with random weights, without a network, and measures speed and memory."""
