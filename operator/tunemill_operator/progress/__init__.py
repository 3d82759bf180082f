"""The HTTPS endpoint that stages report their progress to."""
