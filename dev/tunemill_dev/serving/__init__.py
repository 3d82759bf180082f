"""Serves small models of the known families with the real vLLM on a CPU, and compares it with Tunemill."""
