"""The report of a run as one HTML page: training curves, metrics, errors with explanations, and inference speed."""
