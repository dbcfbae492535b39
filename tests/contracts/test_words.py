"""The package uses the field's words; those of its former private vocabulary stay out of code, docs and examples."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
READ = ("src", "docs", "examples", "scripts", "deploy", "README.md", "CONTRIBUTING.md", "CHANGELOG.md")
SUFFIXES = {".py", ".md", ".js", ".html", ".css", ".jinja", ".cpp", ".h", ".yaml", ".toml", ""}
BANNED = {
    "picture": "image", "pictures": "images", "mark": "annotation", "marks": "annotations", "marked": "annotated",
    "wanted": "expected", "answer": "prediction, response or output", "answers": "predictions, responses or outputs",
    "answered": "returned", "learnt": "trained", "offer": "dataset", "offers": "datasets", "outline": "polygon or mask",
    "outlines": "polygons or masks", "outlined": "segmented", "spared": "excluded", "held out": "validation set",
    "held-out": "validation", "judge": "metric or evaluate", "judges": "validation images", "twin": "copy",
    "colour": "color", "grey": "gray", "neighbour": "neighbor", "normalise": "normalize", "optimiser": "optimizer",
}  # fmt: skip
"""Word (whole, in any case) and what to write instead."""
ALLOWED = {
    ("src/van/serving/page/style.css", "outline"): "the CSS property",
    ("src/van/report/templates/style.css", "outline"): "the CSS property",
    ("src/van/serving/page/docs.css", "outline"): "the CSS property",
    ("src/van/ops/dispatch.py", "marked"): "the attribute that PyTorch's compiler reads, _dynamo_marked_constant",
    ("CONTRIBUTING.md", "picture"): "the example of a word that is not used",
    ("CONTRIBUTING.md", "answer"): "the example of a word that is not used",
}
"""File and word, with the reason; at most ten."""


def words_in(text: str) -> Iterator[tuple[int, str]]:
    """Line number and word of every banned word; identifiers count by their parts, so that ``on_picture`` is found."""
    pattern = re.compile(rf"(?<![a-zA-Z])({'|'.join(sorted(BANNED, key=len, reverse=True))})(?![a-z])", re.IGNORECASE)
    for number, line in enumerate(text.splitlines(), start=1):
        # camelCase is split, so that PictureSet is found, too
        for match in pattern.finditer(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", line)):
            yield number, match[1].lower()


def files() -> list[Path]:
    found = [path for name in READ for path in ([ROOT / name] if (ROOT / name).is_file() else (ROOT / name).rglob("*"))]
    return [path for path in found if path.is_file() and path.suffix in SUFFIXES and "__pycache__" not in path.parts]


def test_no_file_uses_a_word_of_the_private_vocabulary():
    checked = files()
    assert len(checked) > 200
    found = []
    for path in checked:
        name = path.relative_to(ROOT).as_posix()
        for number, word in words_in(path.read_text(encoding="utf-8")):
            if (name, word) not in ALLOWED:
                found.append(f"{name}:{number}: {word!r}; write {BANNED[word]!r}")
    assert found == []


def test_the_exceptions_are_few_and_each_is_needed():
    assert len(ALLOWED) <= 10
    for name, word in ALLOWED:
        assert word in {found for _, found in words_in((ROOT / name).read_text(encoding="utf-8"))}, (name, word)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Read a picture", ["picture"]),
        ("def on_picture(self):", ["picture"]),
        ("class PictureSet:", ["picture"]),
        ("two held out\nMARKS = 3", ["held out", "marks"]),
        ("a remark on benchmarks in Markdown, an answerable offering", []),
        ("pytest.mark.slow", ["mark"]),
    ],
)
def test_whole_words_and_parts_of_identifiers_are_found(text, expected):
    assert [word for _, word in words_in(text)] == expected
