"""The verbs of ``van`` with one line about each; imports nothing, so that ``van --help`` is instant."""

VERBS = {
    "train": "Train a model by a recipe: classification, detection, segmentation; your own images or built-in data",
    "eval": "Evaluate a model on an annotated dataset: accuracy, COCO AP, mean IoU, panoptic quality",
    "predict": "Predict classes, boxes, masks or semantic maps of images",
    "explain": "Draw class activation maps and LKA attention, and evaluate how faithful they are",
    "report": "Write an HTML report of a training run: curves, metrics, errors, speed",
    "export": "Export a model to ONNX, OpenVINO or torch.export, verified against PyTorch",
    "serve": "Serve models over HTTP, with a web page to try them",
    "models": "List the models: parameters, multiply-accumulates, top-1 accuracy, public weights",
    "convert": "Convert public VAN weights to a checkpoint of this package",
    "data": "Validate a dataset; write the built-in datasets as files",
    "bench": "Benchmark operators, models and runtimes: latency, throughput, memory",
    "design": "Find the best dilation of LKA for a kernel size, and its cost",
    "completion": "Print the completion script for bash, zsh or fish",
}
