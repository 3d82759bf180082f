"""Training: device, base model, adapter, SFTTrainer, checkpoints, memory estimate and training log."""
