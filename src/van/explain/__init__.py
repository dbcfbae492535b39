"""Why a network answers as it does: class activation maps, LKA's own attention, receptive fields, and their scores.

::

    explainer.py           pictures in, answers and the maps behind them out; cam, layers, targets are its parts
    gates.py               the attention that LKA itself computes
    receptive_fields.py    what a cell can read (theoretical_fields) and does read
    faithfulness.py        how far maps can be believed: deletion, pointing
"""

from van.explain.cam import METHODS
from van.explain.explainer import Explainer, Explanation
from van.explain.faithfulness import Faithfulness, Wanted, score_maps
from van.explain.gates import Gate, lka_gates, lka_maps
from van.explain.layers import find_layer
from van.explain.receptive_fields import effective_fields, measure_fields, theoretical_fields

__all__ = [
    "METHODS",
    "Explainer",
    "Explanation",
    "Faithfulness",
    "Gate",
    "Wanted",
    "effective_fields",
    "find_layer",
    "lka_gates",
    "lka_maps",
    "measure_fields",
    "score_maps",
    "theoretical_fields",
]
