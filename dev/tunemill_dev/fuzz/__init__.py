"""Tries the readers of rows, files and replies with inputs that nobody thought of: real shapes with random changes."""
