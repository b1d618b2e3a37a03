"""attnlab: experiments on attention mechanisms that are more expressive than the dot product."""

__version__ = "0.1.0"
