"""Training: the device, the base model, the adapter, the run of SFTTrainer, its checkpoints and its loss curve."""
