"""Datasets: readers of every supported layout, validation, augmentation, and the embedded digits and scenes."""
