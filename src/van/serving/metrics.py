"""Prometheus metrics of the server. No label takes its value from a client, so that their number is bounded."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters, gauges and histograms of one server, in their own registry.

    Stages of ``stage_seconds``: read (the request body), decode, queue, transfer (to the worker), inference and total.
    """

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("van_requests", "Requests by route and status.", ["route", "status"], registry=registry)
        self.stage_seconds = Histogram(
            "van_stage_seconds", "Time in each stage of a request.", ["stage"], buckets=_SECONDS, registry=registry
        )
        self.batch_size = Histogram(
            "van_batch_size", "Images per batch.", ["model"], buckets=_BATCH_SIZES, registry=registry
        )
        self.queue_depth = Gauge("van_queue_depth", "Images waiting for a worker.", ["model"], registry=registry)
        self.images_in_progress = Gauge(
            "van_images_in_progress", "Images accepted and not yet finished.", ["model"], registry=registry
        )
        self.requests_in_progress = Gauge("van_requests_in_progress", "Requests in progress.", registry=registry)
        self.memory_bytes = Gauge(
            "van_memory_bytes", "Memory held by request bodies and decoded images.", registry=registry
        )
        self.requests_rejected = Counter(
            "van_requests_rejected", "Requests rejected, by error code.", ["reason"], registry=registry
        )
        self.client_disconnects = Counter(
            "van_client_disconnects", "Clients that disconnected before the response.", registry=registry
        )
        self.workers = Gauge("van_workers", "Workers that are ready.", registry=registry)
        self.worker_restarts = Counter("van_worker_restarts", "Workers restarted.", ["reason"], registry=registry)
        self.model_reloads = Counter(
            "van_model_reloads", "Reloads of changed model files.", ["model", "result"], registry=registry
        )

    def to_text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)
