"""The Kubernetes API of Tunemill, and the contract between operator and trainer."""
