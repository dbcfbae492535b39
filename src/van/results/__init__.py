"""What a model says about a picture, and how it is drawn."""

from van.results.classes import Classes, RankedClass

__all__ = ["Classes", "RankedClass"]
