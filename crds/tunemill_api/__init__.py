"""The Kubernetes API of Tunemill: what users write, what the operator answers, and the contract between operator and trainer."""
