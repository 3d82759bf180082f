"""What people type on a laptop: one file a command."""
