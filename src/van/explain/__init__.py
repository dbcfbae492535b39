"""Explanations of predictions: class activation maps, LKA attention maps, receptive fields, and their evaluation.

::

    explainer.py                 predictions with class activation maps; uses cam, layers, targets
    lka_attention.py             the attention maps that LKA computes
    receptive_fields.py          effective receptive fields, and theoretical ones with receptive_field_tracing
    faithfulness.py              evaluation of maps: deletion, insertion, pointing games
"""

from van.callable_module import make_callable
from van.explain.cam import METHODS
from van.explain.explainer import Explainer, Explanation
from van.explain.faithfulness import EvaluationSample, Faithfulness, evaluate_faithfulness
from van.explain.layers import find_layer
from van.explain.lka_attention import AttentionMap, lka_attention_maps, lka_channel_maps
from van.explain.receptive_fields import (
    effective_receptive_fields,
    measure_receptive_fields,
    theoretical_receptive_fields,
)

make_callable(__name__)  # van.explain(...) is van.api.explain

__all__ = [
    "METHODS",
    "AttentionMap",
    "EvaluationSample",
    "Explainer",
    "Explanation",
    "Faithfulness",
    "effective_receptive_fields",
    "evaluate_faithfulness",
    "find_layer",
    "lka_attention_maps",
    "lka_channel_maps",
    "measure_receptive_fields",
    "theoretical_receptive_fields",
]
