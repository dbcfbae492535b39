"""Pictures in, answers out: on a checkpoint, on public weights, on another timm network."""

import io
import itertools
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from data.made import COLOURS, picture, write_checkpoint, write_classes
from parity import filled_b0
from van import Checkpoint, Predictor, Preprocess
from van.checkpoint import load_checkpoint
from van.errors import CheckpointError, HubError, PictureError, UsageError
from van.models.load import load
from van.pictures import expand_pictures
from van.tasks.base import Frame

LABELS = tuple(COLOURS)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "best.safetensors")


@pytest.fixture(scope="module")
def predictor(checkpoint) -> Predictor:
    return Predictor.load(checkpoint, device="cpu")


@pytest.fixture
def pictures(tmp_path) -> list[Path]:
    """Nine pictures of sizes and shapes of their own."""
    paths = []
    for number in range(9):
        colour = COLOURS[LABELS[number % 3]]
        paths.append(tmp_path / f"{number}.png")
        picture(colour, seed=number, size_px=(30 + 5 * number, 60 - 4 * number)).save(paths[-1])
    return paths


def encoded(made: Image.Image) -> bytes:
    buffer = io.BytesIO()
    made.save(buffer, "PNG")
    return buffer.getvalue()


def assert_same(answer, other) -> None:
    """Float32 through another batch size sums in another order: seen below 1e-6, so 1e-5 leaves room."""
    np.testing.assert_allclose(answer.probabilities, other.probabilities, rtol=0, atol=1e-5)


def test_answers_are_those_of_the_network_on_the_preprocessed_picture(checkpoint, predictor, pictures):
    model = timm.create_model("van_b0", num_classes=3).eval()
    stored = load_checkpoint(checkpoint)
    model.load_state_dict(dict(stored.state))
    for path in pictures[:3]:
        with torch.no_grad():
            wanted = model(stored.preprocess(Image.open(path).convert("RGB"))[None]).softmax(1)[0]
        answer = predictor(path)
        np.testing.assert_allclose(answer.probabilities, wanted.numpy(), rtol=0, atol=1e-5)
        assert answer.labels == LABELS
        assert answer.name == str(path)


def test_tensors_that_are_preprocessed_already_are_answered_bit_for_bit_as_their_pictures(predictor, pictures):
    wanted = predictor(pictures[:3])
    tensors = [predictor.preprocess(Image.open(path).convert("RGB")) for path in pictures[:3]]
    frames = [Frame(str(path)) for path in pictures[:3]]
    assert predictor.of_tensors(tensors, frames) == wanted
    assert predictor.of_tensors(torch.stack(tensors), frames) == wanted
    assert predictor.of_tensors(tensors[::-1], frames) != wanted


def test_a_batch_answers_as_its_pictures_do_one_by_one_and_in_order(predictor, pictures):
    together = predictor(pictures)
    assert [answer.name for answer in together] == [str(path) for path in pictures]
    for answer, path in zip(together, pictures, strict=True):
        assert_same(answer, predictor(path))
    distances = [np.abs(np.subtract(one.probabilities, other.probabilities)).max()
                 for one, other in itertools.combinations(together, 2)]  # fmt: skip
    assert min(distances) > 1e-3  # so a wrong order could not pass


def test_paths_bytes_and_pictures_give_one_answer(predictor, pictures):
    path = pictures[4]
    answers = predictor([path, str(path), path.read_bytes(), Image.open(path)])
    for answer in answers[1:]:
        assert answer.probabilities == answers[0].probabilities
    assert [answer.name for answer in answers] == [str(path), str(path), "picture 2", "picture 3"]
    for one in (str(path), path.read_bytes(), Image.open(path)):
        assert_same(predictor(one), answers[0])


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "I;16"])
def test_pictures_of_every_mode_are_answered(predictor, mode):
    made = picture(COLOURS["red"], 0)
    made = made.convert("L").convert("I").convert("I;16") if mode == "I;16" else made.convert(mode)
    assert sum(predictor(made).probabilities) == pytest.approx(1, abs=1e-5)


def test_several_pictures_may_come_from_any_iterable(predictor, pictures):
    wanted = [answer.name for answer in predictor(pictures)]
    for several in (tuple(pictures), iter(pictures), (path for path in pictures), dict.fromkeys(pictures)):
        assert [answer.name for answer in predictor(several)] == wanted
    for nothing in ([], (), iter([])):
        assert predictor(nothing) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((8, 8, 3), np.uint8), "picture 0 is a ndarray; wanted a path, the bytes of a file, or a PIL picture"),
        ([torch.zeros(3, 8, 8)], "picture 0 is a Tensor"),
        ([None], "picture 0 is a NoneType"),
        (3, "pictures is a int"),
        (bytearray(b"abc"), "pictures is a bytearray"),
    ],
)
def test_what_is_no_picture_is_named(predictor, given, message):
    with pytest.raises(UsageError, match=message):
        predictor(given)


def test_an_unreadable_picture_fails_a_call_by_name(predictor, pictures, tmp_path):
    (tmp_path / "broken.png").write_bytes(pictures[0].read_bytes()[:50])
    with pytest.raises(PictureError, match=r"broken\.png: is damaged or cut off"):
        predictor([pictures[0], tmp_path / "broken.png"])
    with pytest.raises(PictureError, match="picture 1: is empty"):
        predictor([pictures[0], b""])


@pytest.mark.parametrize("batch_size", [1, 2, 4, 50])
def test_a_stream_goes_on_past_unreadable_files_and_keeps_the_order(predictor, pictures, tmp_path, batch_size):
    (tmp_path / "text.png").write_text("no picture")
    bad = [tmp_path / "text.png", tmp_path / "gone.png", tmp_path]
    listed = [bad[0], *pictures[:3], bad[1], bad[2], *pictures[3:], bad[0]]
    answers = list(predictor.stream(listed, batch_size=batch_size))
    assert [answer.name for answer in answers] == [str(path) for path in listed]
    assert [isinstance(answer, PictureError) for answer in answers] == [path in bad for path in listed]
    for answer, wanted in zip(
        [a for a in answers if not isinstance(a, PictureError)], predictor(pictures), strict=True
    ):
        assert_same(answer, wanted)


def test_a_stream_of_nothing_but_unreadable_files_is_all_errors(predictor, tmp_path):
    answers = list(predictor.stream([tmp_path / "a.png", tmp_path / "b.png"], batch_size=1))
    assert [str(answer) for answer in answers] == [f"{tmp_path / name}: no such file" for name in ("a.png", "b.png")]
    assert list(predictor.stream([])) == []


def test_a_file_listed_twice_in_one_batch_is_answered_twice(predictor, pictures, tmp_path):
    gone = tmp_path / "gone.png"
    answers = list(predictor.stream([pictures[0], gone, pictures[0], gone, pictures[1]], batch_size=5))
    assert [isinstance(answer, PictureError) for answer in answers] == [False, True, False, True, False]
    assert answers[0].probabilities == answers[2].probabilities != answers[4].probabilities


def test_a_stream_reads_no_further_than_its_batch(predictor, pictures):
    """A list may be endless, such as one that a camera writes."""
    taken = []

    def endless():
        for path in itertools.cycle(pictures):
            taken.append(path)
            yield path

    answers = list(itertools.islice(predictor.stream(endless(), batch_size=4), 6))
    assert [answer.name for answer in answers] == [str(path) for path in pictures[:6]]
    assert len(taken) == 8


def test_a_batch_of_none_is_refused_at_once(predictor, pictures):
    with pytest.raises(UsageError, match="batch_size is 0; wanted at least 1"):
        predictor.stream(pictures, batch_size=0)


def test_predicting_changes_nothing_in_the_network(predictor, pictures):
    before = {name: tensor.clone() for name, tensor in predictor.model.state_dict().items()}
    predictor(pictures)
    assert not predictor.model.training
    assert all(tensor.equal(before[name]) for name, tensor in predictor.model.state_dict().items())


def test_files_folders_and_patterns_become_files_in_the_order_given(tmp_path, monkeypatch):
    write_classes(tmp_path, {"ant": 3, "bee": 2})
    (tmp_path / "ant" / "notes.txt").touch()
    (tmp_path / "[odd] name.png").touch()
    monkeypatch.chdir(tmp_path)
    ants = [Path("ant", f"ant-{n}.png") for n in range(3)]
    bees = [Path("bee", f"bee-{n}.png") for n in range(2)]
    assert expand_pictures(["bee", "ant/ant-0.png"]) == [*bees, ants[0]]
    assert expand_pictures(["ant/*.png", "gone.png"]) == [*ants, Path("gone.png")]
    assert expand_pictures(["**/*-1.png"]) == [ants[1], bees[1]]
    assert expand_pictures(["[odd] name.png"]) == [Path("[odd] name.png")]  # a file before a pattern
    assert expand_pictures(["."]) == [Path("[odd] name.png"), *ants, *bees]
    assert expand_pictures(["ant/notes.txt"]) == [Path("ant/notes.txt")]  # asked for by name, so reported by name
    assert expand_pictures([]) == []


@pytest.mark.parametrize(("argument", "message"), [("empty", "empty holds no pictures"), ("*.gif", "matches no files")])
def test_a_folder_or_pattern_without_pictures_is_named(tmp_path, monkeypatch, argument, message):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        expand_pictures([argument])


def test_a_name_that_is_no_model_and_no_file_says_what_is_known(tmp_path):
    with pytest.raises(UsageError, match=r"'van_b9' is neither a file nor a model; known: van_b0, van_b1"):
        Predictor.load("van_b9")
    for path in (tmp_path / "gone.safetensors", "runs/gone", tmp_path / "gone"):
        with pytest.raises(CheckpointError, match=r"gone.*: no such file; give the path of a weights file"):
            Predictor.load(path)
    with pytest.raises(CheckpointError, match="is a folder; give the path of a weights file in it"):
        Predictor.load(tmp_path)


@pytest.mark.parametrize("name", ["van_b0", "van_b4", "resnet18", "resnet18.a1_in1k"])
def test_a_model_whose_weights_cannot_be_had_says_so(name, tmp_path, monkeypatch):
    """The tests run offline, with nothing in the cache; a folder of the same name is not taken for the weights."""
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir()
    with pytest.raises(HubError, match=name) as caught:
        Predictor.load(name)
    assert "\n" not in str(caught.value)


def test_the_released_file_answers_with_its_own_classes_and_preprocessing(tmp_path):
    path = tmp_path / "van_tiny_754.pth.tar"
    torch.save({"state_dict": filled_b0()}, path)
    predictor = Predictor.load(path, device="cpu")
    assert predictor.preprocess == Preprocess()
    assert len(predictor.labels) == 1000
    assert predictor.labels[0].startswith("tench")
    assert any("official weights of van_b0" in note and "commercial use" in note for note in predictor.notes)
    answer = predictor(picture(COLOURS["red"], 1, (300, 260)))
    model = timm.create_model("van_b0").eval()
    model.load_state_dict(filled_b0())
    with torch.no_grad():
        wanted = model(Preprocess()(picture(COLOURS["red"], 1, (300, 260)))[None]).softmax(1)[0]
    np.testing.assert_allclose(answer.probabilities, wanted.numpy(), rtol=0, atol=1e-5)


def save_timm_model(path: Path, model: torch.nn.Module, name: str, labels: tuple[str, ...], **more: object) -> Path:
    Checkpoint(
        task="classify", model=name, labels=labels, preprocess=Preprocess(size_px=32), state=model.state_dict(), **more
    ).save(path)  # fmt: skip
    return path


def test_another_timm_network_works_from_end_to_end(tmp_path):
    """Its classifier is called ``fc`` and not ``head``."""
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=2).eval()
    path = save_timm_model(tmp_path / "resnet.safetensors", model, "resnet18", ("cold", "warm"))
    predictor = Predictor.load(path, device="cpu")
    made = picture(COLOURS["green"], 2)
    with torch.no_grad():
        wanted = model(predictor.preprocess(made)[None]).softmax(1)[0]
    np.testing.assert_allclose(predictor(made).probabilities, wanted.numpy(), rtol=0, atol=1e-5)
    other = load(path, num_classes=5)
    assert other.model.fc.weight.shape[0] == 5
    assert other.labels == tuple(f"class {n}" for n in range(5))
    assert any("(2 classes) was left out: 5 were asked for" in note for note in other.notes)
    body = {name: tensor for name, tensor in other.model.state_dict().items() if not name.startswith("fc.")}
    assert all(tensor.equal(model.state_dict()[name]) for name, tensor in body.items())


def test_what_cannot_classify_pictures_is_refused_with_the_reason(tmp_path, checkpoint):
    backbone = timm.create_model("van_b0", num_classes=0)
    path = save_timm_model(tmp_path / "backbone.safetensors", backbone, "van_b0", ())
    with pytest.raises(UsageError, match="van_b0 has no classes"):
        Predictor.load(path)
    grey = timm.create_model("resnet18", num_classes=2, in_chans=1)
    options = {"model_options": {"in_chans": 1}}
    path = save_timm_model(tmp_path / "grey.safetensors", grey, "resnet18", ("a", "b"), **options)
    with pytest.raises(UsageError, match="resnet18 reads 1 channels; wanted a network for RGB pictures"):
        Predictor.load(path)
    stored = load_checkpoint(checkpoint)
    Checkpoint(task="detect", model="van_b0", labels=LABELS, preprocess=stored.preprocess, state=stored.state).save(
        tmp_path / "boxes.safetensors"
    )
    with pytest.raises(UsageError, match="van_b0 is to detect, but has no head for it; wanted one of retinanet, fcos"):
        Predictor.load(tmp_path / "boxes.safetensors")


def test_a_checkpoint_of_a_model_that_is_not_installed_is_named(tmp_path):
    model = timm.create_model("van_b0", num_classes=2)
    path = save_timm_model(tmp_path / "odd.safetensors", model, "my_own_network", ("a", "b"))
    with pytest.raises(CheckpointError, match=r"odd\.safetensors: 'my_own_network' is neither a file nor a model"):
        Predictor.load(path)
    path = save_timm_model(tmp_path / "options.safetensors", model, "van_b0", ("a", "b"), model_options={"wings": 2})
    with pytest.raises(CheckpointError, match=r"options\.safetensors: van_b0 cannot be built with .*wings"):
        Predictor.load(path)


@pytest.mark.parametrize("device", ["gpu", "meta", "cuda:99"])
def test_a_device_that_is_not_here_is_bad_usage(checkpoint, device):
    with pytest.raises(UsageError, match=f"device is '{device}'"):
        Predictor.load(checkpoint, device=device)


def test_the_device_is_chosen_where_none_is_named(checkpoint):
    wanted = "cuda" if torch.cuda.is_available() else "cpu"
    for device in (None, "auto", torch.device(wanted)):
        assert Predictor.load(checkpoint, device=device).device.type == wanted
