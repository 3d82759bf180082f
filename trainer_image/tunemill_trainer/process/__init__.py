"""What all processes of the trainer use: CPU count, signals, address checks, limits, output, progress and tracing."""
