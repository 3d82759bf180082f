"""What the operator says about itself: metrics, log lines, health."""
