"""The four stages, one module each, and the runner and supervisor that run them."""
