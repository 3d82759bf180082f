"""The complete GPU check, `make gpu-check`: the trainer's own check, publishing, and other trainers for comparison."""
