"""Compiling for a TPU slice without a TPU: what a step needs and what bounds its speed."""
