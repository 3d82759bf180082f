"""The whole check of a GPU: the trainer's own one, publishing, and others on the same rows: `make gpu-check`."""
