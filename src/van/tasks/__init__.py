"""The tasks: for each, how samples are collated, the loss, the metrics, and the decoding of outputs."""
