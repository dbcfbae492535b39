"""A dataset format from outside of the package: one CSV file with a box in each line.

::

    ROOT/boxes_train.csv, boxes_val.csv    image,x1,y1,x2,y2,class
"""

import csv
import itertools
from pathlib import Path

from van.datasets import AnnotatedDataset, Annotation, ImageRecord, Issues, register_format
from van.datasets.annotations import InvalidAnnotation, check_box


@register_format(
    "toy",
    title="boxes in CSV",
    tasks=("detect",),
    files="`boxes_{split}.csv`",
    recognize=lambda root, split: (root / f"boxes_{split}.csv").is_file(),
)
def read_toy(root: Path, split: str, issues: Issues) -> AnnotatedDataset:
    """Read the boxes of a split; images are in the order of the file."""
    path = root / f"boxes_{split}.csv"
    boxes: dict[str, list[Annotation]] = {}
    ids = itertools.count(1)
    for number, row in enumerate(csv.reader(path.read_text(encoding="utf-8").splitlines()), start=1):
        annotations = boxes.setdefault(row[0], [])
        try:
            x1, y1, x2, y2 = map(float, row[1:5])
            check_box((x1, y1, x2, y2), (10_000, 10_000))
            annotations.append(Annotation(label=int(row[5]), box=(x1, y1, x2, y2), id=next(ids)))
        except (InvalidAnnotation, ValueError) as error:
            issues.add(path, error, location=f"line {number}")
    images = [
        ImageRecord(path=root / name, name=name, id=image_id, annotations=tuple(annotations))
        for image_id, (name, annotations) in enumerate(boxes.items(), start=1)
    ]
    names = tuple("0123456789")
    return AnnotatedDataset(class_names=names, category_ids=tuple(range(10)), images=tuple(images))
