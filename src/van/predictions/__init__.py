"""Prediction types: what a model predicts for one image, as plain values, JSON, COCO results and drawings."""

from van.predictions.classification import Classification, ClassScore
from van.predictions.detections import Detection, Detections
from van.predictions.segmentation import Segment, Segmentation

__all__ = ["ClassScore", "Classification", "Detection", "Detections", "Segment", "Segmentation"]
