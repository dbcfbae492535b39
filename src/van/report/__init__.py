"""The report of a run as one HTML page: training curves, metrics, errors with explanations, and inference speed."""

from van.callable_module import make_callable

make_callable(__name__)  # van.report(...) is van.api.report
