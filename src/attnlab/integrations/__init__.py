"""Mechanisms of this project inside models of other libraries."""
