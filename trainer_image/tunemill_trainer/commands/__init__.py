"""The commands of `tunemill`: one module for each. `program` builds the parser and runs the chosen command."""
