"""Where pictures come from: folders of classes, the embedded digits, and augmentation."""
