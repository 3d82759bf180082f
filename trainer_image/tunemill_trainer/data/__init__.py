"""The user's data: sources, formats, checks, and the split into training and held-out rows."""
