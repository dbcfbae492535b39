"""The tree drawn in the docstring is the tree that exists, and every error says what it carries."""

import inspect
import pickle
import re

import pytest

from van import errors
from van.errors import MissingExtra, NamesMismatch, NonFiniteLoss, PictureError, ShapeError, UsageError, VanError

CLASSES = {
    name: kind for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, BaseException)
}
SAMPLES = [
    MissingExtra("scikit-learn", "demo", "the embedded digits"),
    PictureError("a.png", "is empty"),
    NamesMismatch("w.pth", missing=["a", "b"], left_over=["c"], misshapen=["d (1,) instead of (2,)"], hint="Rename."),
    NonFiniteLoss("gradient", 7, [f"{n}.png" for n in range(11)], "last.safetensors holds the last good state."),
]


def drawn_tree() -> dict[str, str]:
    """Class to its parent, as the drawing has them."""
    parents, path = {}, []
    for line in (errors.__doc__ or "").splitlines():
        drawn = re.match(r"    ((?:│   |    )*(?:├── |└── )?)(\w+)  +\S", line)
        if drawn:
            depth = len(drawn[1]) // 4
            path[depth:] = [drawn[2]]
            parents[drawn[2]] = path[depth - 1] if depth else "Exception"
    return parents


def test_the_drawing_lists_exactly_the_classes_there_are_under_their_parents():
    assert drawn_tree() == {name: kind.__bases__[0].__name__ for name, kind in CLASSES.items()}


def test_every_error_is_a_van_error_with_an_exit_status_and_a_docstring():
    for name, kind in CLASSES.items():
        assert issubclass(kind, VanError), name
        assert kind.exit_status == (2 if issubclass(kind, UsageError) else 1), name
        assert kind.__doc__, name
        assert kind.__module__ == "van.errors"


def test_only_bad_usage_ends_with_status_2():
    bad_usage = {name for name, kind in CLASSES.items() if kind.exit_status == 2}
    assert bad_usage == {"UsageError", "MissingExtra", "RunExists"}


def test_a_shape_error_is_also_a_value_error():
    """So that code which knows nothing of this package may catch it."""
    assert issubclass(ShapeError, ValueError)


def test_messages_carry_what_the_attributes_hold():
    extra, picture, names, loss = SAMPLES
    assert "the embedded digits needs the package 'scikit-learn'" in str(extra)
    assert "pip install 'visual-attention-network[demo]'" in str(extra)
    assert (extra.package, extra.extra) == ("scikit-learn", "demo")
    assert str(picture) == f"{picture.name}: {picture.reason}" == "a.png: is empty"
    assert str(names).splitlines() == [
        "w.pth does not fit the model.",
        "  missing (2): a, b",
        "  left over (1): c",
        "  of another shape (1): d (1,) instead of (2,)",
        "Rename.",
    ]
    assert (names.missing, names.left_over, names.misshapen) == (("a", "b"), ("c",), ("d (1,) instead of (2,)",))
    assert "the gradient is not finite at step 7" in str(loss)
    assert "0.png, 1.png, 2.png, 3.png, 4.png, 5.png, 6.png, 7.png and 3 more." in str(loss)
    assert "last.safetensors holds the last good state." in str(loss)
    assert loss.step == 7
    assert len(loss.pictures) == 11


def test_a_short_list_of_pictures_ends_without_a_count():
    assert "the pictures of that step: a.png, b.png. Kept." in str(
        NonFiniteLoss("loss", 1, ["a.png", "b.png"], "Kept.")
    )


def test_parts_that_do_not_apply_are_left_out_of_the_message():
    assert str(NamesMismatch("w.pth", left_over=["c"])).splitlines()[1:] == ["  left over (1): c"]


@pytest.mark.parametrize(
    "error", [*SAMPLES, *(kind("x") for kind in CLASSES.values() if kind not in map(type, SAMPLES))]
)
def test_an_error_survives_the_way_out_of_a_worker_process(error):
    """Pickle would call ``__init__`` with the finished message, which most of these do not take."""
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)
