"""The HTTPS endpoint to which stages report their progress."""
