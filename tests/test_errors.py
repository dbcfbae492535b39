"""The tree in the docstring of van.errors equals the classes, and messages have the attributes' values."""

import inspect
import pickle
import re

from van import errors
from van.errors import ImageError, MissingExtra, NonFiniteLoss, ShapeError, StateDictMismatch, UsageError, VanError

CLASSES = {
    name: kind for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, BaseException)
}
SAMPLES = [
    MissingExtra("scikit-learn", "demo", "the digits dataset"),
    ImageError("a.png", "is empty"),
    StateDictMismatch(
        "w.pth", missing=["a", "b"], unexpected=["c"], mismatched=["d (1,) instead of (2,)"], hint="Rename."
    ),
    NonFiniteLoss("gradient", 7, [f"{n}.png" for n in range(11)], "last.safetensors is the last checkpoint."),
]


def documented_tree() -> dict[str, str]:
    """Class to its base, as the docstring has them."""
    parents, path = {}, []
    for line in (errors.__doc__ or "").splitlines():
        entry = re.match(r"    ((?:│   |    )*(?:├── |└── )?)(\w+)  +\S", line)
        if entry:
            depth = len(entry[1]) // 4
            path[depth:] = [entry[2]]
            parents[entry[2]] = path[depth - 1] if depth else "Exception"
    return parents


def test_the_docstring_lists_exactly_the_classes_below_their_bases():
    assert documented_tree() == {name: kind.__bases__[0].__name__ for name, kind in CLASSES.items()}


def test_every_error_is_a_van_error_with_an_exit_status_and_a_docstring():
    for name, kind in CLASSES.items():
        assert issubclass(kind, VanError), name
        assert kind.exit_status == (2 if issubclass(kind, UsageError) else 1), name
        assert kind.__doc__, name
        assert kind.__module__ == "van.errors"


def test_only_usage_errors_have_exit_status_2():
    usage = {name for name, kind in CLASSES.items() if kind.exit_status == 2}
    assert usage == {"UsageError", "MissingExtra", "RunExists"}


def test_a_shape_error_is_also_a_value_error():
    """Callers that expect a ValueError, as torch raises, can catch it."""
    assert issubclass(ShapeError, ValueError)


def test_messages_have_the_values_of_the_attributes():
    extra, image, names, loss = SAMPLES
    assert str(extra).startswith("the digits dataset: ")
    assert "scikit-learn" in str(extra)
    assert "pip install 'visual-attention-network[demo]'" in str(extra)
    assert (extra.package, extra.extra) == ("scikit-learn", "demo")
    assert str(image) == f"{image.name}: {image.reason}" == "a.png: is empty"
    assert str(names).splitlines() == [
        "w.pth: the state dict does not match the model.",
        "  missing (2): a, b",
        "  unexpected (1): c",
        "  shape mismatch (1): d (1,) instead of (2,)",
        "Rename.",
    ]
    assert (names.missing, names.unexpected, names.mismatched) == (("a", "b"), ("c",), ("d (1,) instead of (2,)",))
    assert str(loss).startswith("step 7: expected a finite gradient, ")
    assert "0.png, 1.png, 2.png, 3.png, 4.png, 5.png, 6.png, 7.png and 3 more." in str(loss)
    assert "last.safetensors is the last checkpoint." in str(loss)
    assert loss.step == 7
    assert len(loss.images) == 11


def test_a_short_list_of_images_ends_without_a_count():
    assert "images of this step: a.png, b.png. Saved." in str(NonFiniteLoss("loss", 1, ["a.png", "b.png"], "Saved."))


def test_empty_lists_are_not_in_the_message():
    assert str(StateDictMismatch("w.pth", unexpected=["c"])).splitlines()[1:] == ["  unexpected (1): c"]


def test_errors_can_be_pickled(subtests):
    """Worker processes send them; pickle alone would call ``__init__`` with the message only."""
    for error in [*SAMPLES, *(kind("x") for kind in CLASSES.values() if kind not in map(type, SAMPLES))]:
        with subtests.test(error=str(error)):
            again = pickle.loads(pickle.dumps(error))
            assert type(again) is type(error)
            assert str(again) == str(error)
            assert vars(again) == vars(error)
