"""HTTP inference server: a front end that decodes and queues images, and workers that run the models."""
