"""Generates files from the chart: the reference page of its values, install.yaml, and golden files."""
