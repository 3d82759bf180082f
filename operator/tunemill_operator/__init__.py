"""The operator: watches FunctionCallFineTune objects, decides what is due, and writes it down."""
