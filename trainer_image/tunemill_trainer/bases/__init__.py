"""Base models that are known: what their families have in common, found by configuration and chat template."""
