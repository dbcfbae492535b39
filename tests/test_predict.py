"""Predictions of classifiers: from a checkpoint, from public weights, and from another timm network."""

import io
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from datasets.synthetic import COLORS, make_image, write_checkpoint, write_classes
from parity import filled_b0
from van.checkpoint import Checkpoint, load_checkpoint
from van.device import place_network
from van.errors import CheckpointError, HubError, ImageError, UsageError
from van.images import expand_images
from van.model import Model
from van.predict import Predictor
from van.preprocess import CenterCropPreprocess
from van.tasks.base import ImageMeta

LABELS = tuple(COLORS)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "best.safetensors")


@pytest.fixture(scope="module")
def predictor(checkpoint) -> Predictor:
    return Predictor(Model.load(checkpoint), device="cpu")


@pytest.fixture
def images(tmp_path) -> list[Path]:
    """Return nine images of different sizes and aspect ratios."""
    paths = []
    for number in range(9):
        color = COLORS[LABELS[number % 3]]
        paths.append(tmp_path / f"{number}.png")
        make_image(color, seed=number, image_size=(30 + 5 * number, 60 - 4 * number)).save(paths[-1])
    return paths


def encoded(made: Image.Image) -> bytes:
    buffer = io.BytesIO()
    made.save(buffer, "PNG")
    return buffer.getvalue()


def assert_same(prediction, other) -> None:
    """Another batch size sums in another order: differences below 1e-6 were observed, so 1e-5 leaves a margin."""
    np.testing.assert_allclose(prediction.scores, other.scores, rtol=0, atol=1e-5)


def test_predictions_equal_the_network_on_the_preprocessed_image(checkpoint, predictor, images):
    model = timm.create_model("van_b0", num_classes=3).eval()
    stored = load_checkpoint(checkpoint)
    model.load_state_dict(dict(stored.state))
    for path in images[:3]:
        with torch.no_grad():
            expected = model(stored.preprocess(Image.open(path).convert("RGB"))[None]).softmax(1)[0]
        prediction = predictor(path)
        np.testing.assert_allclose(prediction.scores, expected.numpy(), rtol=0, atol=1e-5)
        assert prediction.class_names == LABELS
        assert prediction.name == str(path)


def test_preprocessed_tensors_give_bitwise_the_predictions_of_their_images(predictor, images):
    expected = predictor(images[:3])
    tensors = [predictor.preprocess(Image.open(path).convert("RGB")) for path in images[:3]]
    image_metas = [ImageMeta(str(path)) for path in images[:3]]
    assert predictor.predict_tensors(tensors, image_metas) == expected
    assert predictor.predict_tensors(torch.stack(tensors), image_metas) == expected
    assert predictor.predict_tensors(tensors[::-1], image_metas) != expected


def test_a_batch_gives_the_predictions_of_its_images_in_order(predictor, images):
    batch = predictor(images)
    assert [prediction.name for prediction in batch] == [str(path) for path in images]
    for prediction, path in zip(batch, images, strict=True):
        assert_same(prediction, predictor(path))
    distances = [np.abs(np.subtract(one.scores, other.scores)).max()
                 for one, other in itertools.combinations(batch, 2)]  # fmt: skip
    assert min(distances) > 1e-3  # so that a wrong order fails


def test_paths_bytes_and_images_give_the_same_prediction(predictor, images):
    path = images[4]
    predictions = predictor([path, str(path), path.read_bytes(), Image.open(path)])
    for prediction in predictions[1:]:
        assert prediction.scores == predictions[0].scores
    assert [prediction.name for prediction in predictions] == [str(path), str(path), "image 2", "image 3"]
    for one in (str(path), path.read_bytes(), Image.open(path)):
        assert_same(predictor(one), predictions[0])


def test_images_of_every_mode_are_predicted(subtests, predictor):
    for mode in ["L", "P", "RGBA", "CMYK", "1", "I;16"]:
        with subtests.test(mode=str(mode)):
            made = make_image(COLORS["red"], 0)
            made = made.convert("L").convert("I").convert("I;16") if mode == "I;16" else made.convert(mode)
            assert sum(predictor(made).scores) == pytest.approx(1, abs=1e-5)


def test_several_images_may_come_from_any_iterable(predictor, images):
    expected = [prediction.name for prediction in predictor(images)]
    for several in (tuple(images), iter(images), (path for path in images), dict.fromkeys(images)):
        assert [prediction.name for prediction in predictor(several)] == expected
    for empty in ([], (), iter([])):
        assert predictor(empty) == []


def test_files_arrays_and_tensors_give_the_prediction_of_their_image(subtests, predictor, images):
    image = Image.open(images[4]).convert("RGB")
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    with images[4].open("rb") as file:
        inputs = {
            "file": file,
            "BytesIO": io.BytesIO(images[4].read_bytes()),
            "array": array,
            "array with other strides": np.ascontiguousarray(array[..., ::-1])[..., ::-1],
            "tensor": tensor,
            "float tensor": tensor / 255,
            "half tensor with a gradient": (tensor / 255).half().requires_grad_(),
        }
        for name, value in inputs.items():
            with subtests.test(name):
                assert predictor(value).scores == predictor(image).scores
    flipped = predictor(array[..., ::-1])  # BGR
    assert flipped.scores != predictor(image).scores


def test_inputs_that_are_no_images_are_named(subtests, predictor):
    rows = np.zeros((8, 9, 3), np.uint8)
    for value, fact in [
        (rows[..., 0], r"\(H, W, 3\).*uint8 \(8, 9\)"),
        (rows[None], r"\(H, W, 3\).*uint8 \(1, 8, 9, 3\).*list"),
        (rows.transpose(2, 0, 1), r"\(H, W, 3\).*uint8 \(3, 8, 9\)"),
        (rows / 255, r"uint8, got float64 \(8, 9, 3\)"),
        (rows[:0], r"got uint8 \(0, 9, 3\)"),
        ([torch.zeros(8, 9, 3)], r"image 0: .*\(3, H, W\).*\(8, 9, 3\)"),
        (torch.zeros(1, 3, 8, 9), r"\(3, H, W\).*\(1, 3, 8, 9\)"),
        (torch.full((3, 8, 9), 1.5), "from 0 to 1, got .*1.5 to 1.5"),
        (torch.full((3, 8, 9), float("nan")), "from 0 to 1, got .*nan"),
        (torch.zeros(3, 8, 9, dtype=torch.int64), "uint8.*int64"),
        (io.StringIO("text"), "image 0: .*binary mode"),
        ([None], "image 0: .*NoneType"),
        (3, "images: .*int"),
        (bytearray(b"abc"), "images: .*bytearray"),
    ]:
        with subtests.test(fact), pytest.raises(UsageError, match=fact):
            predictor(value)


def test_an_unreadable_image_is_an_error_with_its_name(predictor, images, tmp_path):
    (tmp_path / "broken.png").write_bytes(images[0].read_bytes()[:50])
    with pytest.raises(ImageError, match=r"broken\.png"):
        predictor([images[0], tmp_path / "broken.png"])
    with pytest.raises(ImageError, match="image 1:"):
        predictor([images[0], b""])


def test_a_stream_continues_after_unreadable_files_and_keeps_the_order(subtests, predictor, images, tmp_path_factory):
    for batch_size in [1, 2, 4, 50]:
        with subtests.test(batch_size=str(batch_size)):
            tmp_path = tmp_path_factory.mktemp("case")
            (tmp_path / "text.png").write_text("no image")
            bad = [tmp_path / "text.png", tmp_path / "missing.png", tmp_path]
            listed = [bad[0], *images[:3], bad[1], bad[2], *images[3:], bad[0]]
            predictions = list(predictor.stream(listed, batch_size=batch_size))
            assert [prediction.name for prediction in predictions] == [str(path) for path in listed]
            assert [isinstance(prediction, ImageError) for prediction in predictions] == [
                path in bad for path in listed
            ]
            for prediction, expected in zip(
                [p for p in predictions if not isinstance(p, ImageError)], predictor(images), strict=True
            ):
                assert_same(prediction, expected)


def test_a_stream_of_only_unreadable_files_yields_only_errors(predictor, tmp_path):
    predictions = list(predictor.stream([tmp_path / "a.png", tmp_path / "b.png"], batch_size=1))
    assert [str(prediction) for prediction in predictions] == [
        f"{tmp_path / name}: no such file" for name in ("a.png", "b.png")
    ]
    assert list(predictor.stream([])) == []


def test_a_file_listed_twice_in_one_batch_is_predicted_twice(predictor, images, tmp_path):
    missing = tmp_path / "missing.png"
    predictions = list(predictor.stream([images[0], missing, images[0], missing, images[1]], batch_size=5))
    assert [isinstance(prediction, ImageError) for prediction in predictions] == [False, True, False, True, False]
    assert predictions[0].scores == predictions[2].scores != predictions[4].scores


def test_a_stream_reads_no_further_than_its_batch(predictor, images):
    """A list may be infinite, such as one that a camera writes."""
    read_paths = []

    def endless():
        for path in itertools.cycle(images):
            read_paths.append(path)
            yield path

    predictions = list(itertools.islice(predictor.stream(endless(), batch_size=4), 6))
    assert [prediction.name for prediction in predictions] == [str(path) for path in images[:6]]
    assert len(read_paths) == 8


def test_a_batch_size_of_zero_is_rejected_at_once(predictor, images):
    with pytest.raises(UsageError, match=r"batch_size.*1.*0"):
        predictor.stream(images, batch_size=0)


def test_predicting_does_not_modify_the_network(predictor, images):
    before = {name: tensor.clone() for name, tensor in predictor.model.network.state_dict().items()}
    predictor(images)
    assert not predictor.model.network.training
    assert all(tensor.equal(before[name]) for name, tensor in predictor.model.network.state_dict().items())


def test_files_folders_and_patterns_expand_in_the_order_given(tmp_path, monkeypatch):
    write_classes(tmp_path, {"ant": 3, "bee": 2})
    (tmp_path / "ant" / "notes.txt").touch()
    (tmp_path / "[odd] name.png").touch()
    monkeypatch.chdir(tmp_path)
    ants = [Path("ant", f"ant-{n}.png") for n in range(3)]
    bees = [Path("bee", f"bee-{n}.png") for n in range(2)]
    assert expand_images(["bee", "ant/ant-0.png"]) == [*bees, ants[0]]
    assert expand_images(["ant/*.png", "missing.png"]) == [*ants, Path("missing.png")]
    assert expand_images(["**/*-1.png"]) == [ants[1], bees[1]]
    assert expand_images(["[odd] name.png"]) == [Path("[odd] name.png")]  # a file before a pattern
    assert expand_images(["."]) == [Path("[odd] name.png"), *ants, *bees]
    assert expand_images(["ant/notes.txt"]) == [
        Path("ant/notes.txt")
    ]  # named explicitly, so an error about it is reported later
    assert expand_images([]) == []


@pytest.mark.parametrize(("argument", "fact"), [("empty", "empty"), ("*.gif", r"\*\.gif")])
def test_a_folder_or_pattern_without_images_is_named(tmp_path, monkeypatch, argument, fact):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=fact):
        expand_images([argument])


def test_an_unknown_name_is_an_error_that_lists_the_models(tmp_path):
    with pytest.raises(UsageError, match=r"van_b0, van_b1.*van_b9"):
        Predictor(Model.load("van_b9"))
    for path in (tmp_path / "missing.safetensors", "runs/missing", tmp_path / "missing"):
        with pytest.raises(CheckpointError, match="missing"):
            Predictor(Model.load(path))
    with pytest.raises(CheckpointError, match=re.escape(str(tmp_path))):
        Predictor(Model.load(tmp_path))


@pytest.mark.parametrize("name", ["van_b0", "van_b4", "resnet18", "resnet18.a1_in1k"])
def test_unavailable_public_weights_are_a_hub_error_with_the_name(name, tmp_path, monkeypatch):
    """The tests run offline, with nothing in the cache; a folder of the same name is not read_paths for the weights."""
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir()
    with pytest.raises(HubError, match=name) as caught:
        Predictor(Model.load(name))
    assert "\n" not in str(caught.value)


def test_the_released_file_predicts_with_its_classes_and_preprocessing(tmp_path):
    path = tmp_path / "van_tiny_754.pth.tar"
    torch.save({"state_dict": filled_b0()}, path)
    predictor = Predictor(Model.load(path), device="cpu")
    assert predictor.preprocess == CenterCropPreprocess()
    assert len(predictor.class_names) == 1000
    assert predictor.class_names[0].startswith("tench")
    assert any("van_b0" in note and "commercial use" in note for note in predictor.model.notes)
    prediction = predictor(make_image(COLORS["red"], 1, (300, 260)))
    model = timm.create_model("van_b0").eval()
    model.load_state_dict(filled_b0())
    with torch.no_grad():
        expected = model(CenterCropPreprocess()(make_image(COLORS["red"], 1, (300, 260)))[None]).softmax(1)[0]
    np.testing.assert_allclose(prediction.scores, expected.numpy(), rtol=0, atol=1e-5)


def save_timm_model(
    path: Path, model: torch.nn.Module, name: str, class_names: tuple[str, ...], **more: object
) -> Path:
    preprocess = CenterCropPreprocess(image_size=32)
    state = model.state_dict()
    Checkpoint(
        task="classify", model=name, class_names=class_names, preprocess=preprocess, state=state, **more
    ).save(path)  # fmt: skip
    return path


def test_another_timm_network_works_end_to_end(tmp_path):
    """Its classifier is named ``fc`` and not ``head``."""
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=2).eval()
    path = save_timm_model(tmp_path / "resnet.safetensors", model, "resnet18", ("cold", "warm"))
    predictor = Predictor(Model.load(path), device="cpu")
    made = make_image(COLORS["green"], 2)
    with torch.no_grad():
        expected = model(predictor.preprocess(made)[None]).softmax(1)[0]
    np.testing.assert_allclose(predictor(made).scores, expected.numpy(), rtol=0, atol=1e-5)
    other = Model.load(path, num_classes=5)
    assert other.network.fc.weight.shape[0] == 5
    assert other.class_names == tuple(f"class {n}" for n in range(5))
    assert any("2 classes" in note and "5" in note for note in other.notes)
    body = {name: tensor for name, tensor in other.network.state_dict().items() if not name.startswith("fc.")}
    assert all(tensor.equal(model.state_dict()[name]) for name, tensor in body.items())


def test_networks_that_cannot_predict_are_rejected_with_the_reason(tmp_path, checkpoint):
    backbone = timm.create_model("van_b0", num_classes=0)
    path = save_timm_model(tmp_path / "backbone.safetensors", backbone, "van_b0", ())
    with pytest.raises(UsageError, match="van_b0"):
        Predictor(Model.load(path))
    gray = timm.create_model("resnet18", num_classes=2, in_chans=1)
    options = {"model_options": {"in_chans": 1}}
    path = save_timm_model(tmp_path / "gray.safetensors", gray, "resnet18", ("a", "b"), **options)
    with pytest.raises(UsageError, match=r"resnet18.*1"):
        Predictor(Model.load(path))
    stored = load_checkpoint(checkpoint)
    Checkpoint(
        task="detect", model="van_b0", class_names=LABELS, preprocess=stored.preprocess, state=stored.state
    ).save(tmp_path / "boxes.safetensors")
    with pytest.raises(UsageError, match=r"van_b0.*fcos, retinanet"):
        Predictor(Model.load(tmp_path / "boxes.safetensors"))


def test_a_checkpoint_of_a_model_that_is_not_installed_is_named(tmp_path):
    model = timm.create_model("van_b0", num_classes=2)
    path = save_timm_model(tmp_path / "odd.safetensors", model, "my_own_network", ("a", "b"))
    with pytest.raises(CheckpointError, match=r"odd\.safetensors.*my_own_network"):
        Predictor(Model.load(path))
    path = save_timm_model(tmp_path / "options.safetensors", model, "van_b0", ("a", "b"), model_options={"wings": 2})
    with pytest.raises(CheckpointError, match=r"options\.safetensors.*van_b0.*wings"):
        Predictor(Model.load(path))


def test_an_unavailable_device_is_a_usage_error(subtests, checkpoint):
    for device in ["gpu", "meta", "cuda:99"]:
        with subtests.test(device=str(device)), pytest.raises(UsageError, match=device):
            Predictor(Model.load(checkpoint), device=device)


def test_the_device_defaults_to_the_gpu_if_available(checkpoint):
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    for device in (None, "auto", torch.device(expected)):
        assert Predictor(Model.load(checkpoint), device=device).device.type == expected


def test_a_network_is_copied_to_another_device_and_stays_where_it_is():
    """A model's network is shared: a second device must not move it away from the first."""
    network = torch.nn.Linear(2, 2)
    assert place_network(network, torch.device("cpu")) is network
    assert next(place_network(network, torch.device("meta")).parameters()).device.type == "meta"
    assert next(network.parameters()).device.type == "cpu"
