"""Client for the API server. Only this package imports kubernetes."""
