"""Benchmark of the recipe: what `dataset.augmentation` gains over plain fine-tuning, on rows of several kinds."""
