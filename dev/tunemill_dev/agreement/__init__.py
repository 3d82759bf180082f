"""Holds our readers of replies to vLLM's own parsers: the same replies, right and mutated, through both."""
