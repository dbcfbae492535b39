"""The HTTP service: one front that reads, checks and queues pictures, and worker processes that hold the networks."""
