"""The four stages, one file each, and what runs them."""
