"""The four stages of a run, as they execute in the trainer image or on one machine."""
