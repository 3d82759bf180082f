"""Publishing of a trained model: files, model card, report page, provenance, push and verification."""
