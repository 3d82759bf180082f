"""Starts serving engines for a release, and asks OpenAI-compatible servers."""
