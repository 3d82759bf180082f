"""Compares Tunemill's reply parsers with vLLM's own parsers, on the same correct and mutated replies."""
