"""Access to storage: the workspace (S3 or a local folder), the Hub, the model cache and credentials."""
