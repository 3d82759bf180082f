"""Fuzzes the readers of rows, files and replies: realistic inputs with random changes."""
