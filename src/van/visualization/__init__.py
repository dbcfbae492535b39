"""Drawing of predictions, attributions and charts."""
