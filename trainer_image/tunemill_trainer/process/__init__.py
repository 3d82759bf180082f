"""What any process of ours needs of its machine: threads, signals, addresses, bounds, log, progress, traces."""
