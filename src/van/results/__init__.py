"""What a model says about a picture, and how it is drawn."""

from van.results.boxes import Boxes, FoundThing
from van.results.classes import Classes, RankedClass
from van.results.masks import Masks, Region

__all__ = ["Boxes", "Classes", "FoundThing", "Masks", "RankedClass", "Region"]
