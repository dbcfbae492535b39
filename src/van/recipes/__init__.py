"""Named runs as functions: each file is one recipe, its settings beside what it does.

``RECIPES`` lists them by name for the command line, without importing torch.
"""

RECIPES = {
    "digits": "learn the 1,797 handwritten digits that scikit-learn carries; nothing to download",
    "finetune": "train on your own folder of class folders, from public or your own weights",
    "imagenet1k": "the paper's recipe for ImageNet-1K, from scratch",
}
