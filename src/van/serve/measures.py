"""What the service counts, for Prometheus. No label takes its value from a client."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_BATCHES = (1, 2, 4, 8, 16, 32, 64)


class Measures:
    """Counters, gauges and histograms of one service, in a registry of their own.

    ``stage``: seconds in read (the body), decode, queue, send (to the worker), network and total. ``rejected`` by
    the code of the error.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter("van_requests", "Requests answered.", ["route", "status"], registry=self._registry)
        self.stage = Histogram(
            "van_stage_seconds", "Seconds in each stage.", ["stage"], buckets=_SECONDS, registry=self._registry
        )
        self.batch_size = Histogram(
            "van_batch_size", "Pictures in a batch.", ["model"], buckets=_BATCHES, registry=self._registry
        )
        self.queue_depth = Gauge(
            "van_queue_depth", "Pictures that wait for a worker.", ["model"], registry=self._registry
        )
        self.accepted = Gauge(
            "van_accepted_pictures", "Pictures accepted and not yet answered.", ["model"], registry=self._registry
        )
        self.in_work = Gauge("van_requests_in_work", "Requests in work.", registry=self._registry)
        self.memory = Gauge("van_memory_bytes", "Bytes of bodies and decoded pictures held.", registry=self._registry)
        self.rejected = Counter("van_rejected", "Requests refused, by reason.", ["reason"], registry=self._registry)
        self.gone = Counter(
            "van_clients_gone", "Requests whose client left before the answer.", registry=self._registry
        )
        self.workers = Gauge("van_workers", "Workers that are ready.", registry=self._registry)
        self.restarts = Counter("van_worker_restarts", "Workers replaced.", ["reason"], registry=self._registry)
        self.reloads = Counter(
            "van_model_reloads", "Changed model files.", ["model", "result"], registry=self._registry
        )

    def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self._registry)
