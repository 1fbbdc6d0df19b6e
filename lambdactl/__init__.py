"""lambdactl: make a rented GPU cluster ready, prove it, and run distributed work on it."""

__version__ = "0.1.0"
