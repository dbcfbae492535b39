import argparse
import re
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from parity import distance_from_recorded, filled, filled_b0, picture, recorded
from van import VAN
from van.errors import NamesMismatch, TruncatedFile, UnknownFormat
from van.models.catalogue import VARIANTS
from van.models.weights import check_fit, load_strictly, official_state, read_weights, recognise, variant_of
from van.preprocess import Preprocess

HALF, IMAGENET = (0.5, 0.5, 0.5), (0.485, 0.456, 0.406)
TINY = {"dims": (4, 6, 8, 10), "depths": (1, 1, 1, 1), "num_classes": 3}

HUGGING_FACE = [  # official pattern, their name; {before} is the stage counted from 0
    (r"^patch_embed(\d)\.proj\.", "van.encoder.stages.{before}.embeddings.convolution."),
    (r"^patch_embed(\d)\.norm\.", "van.encoder.stages.{before}.embeddings.normalization."),
    (r"^block(\d)\.", "van.encoder.stages.{before}.layers."),
    (r"^norm(\d)\.", "van.encoder.stages.{before}.normalization."),
    (r"(?<=\d\.)norm1\.", "pre_normomalization."),
    (r"(?<=\d\.)norm2\.", "post_normalization."),
    (r"attn\.proj_1\.", "attention.pre_projection.conv."),
    (r"attn\.spatial_gating_unit\.conv0\.", "attention.attention_layer.attention.depth_wise."),
    (r"attn\.spatial_gating_unit\.conv_spatial\.", "attention.attention_layer.attention.depth_wise_dilated."),
    (r"attn\.spatial_gating_unit\.conv1\.", "attention.attention_layer.attention.point_wise."),
    (r"attn\.proj_2\.", "attention.post_projection."),
    (r"layer_scale_1$", "attention_scaling.weight"),
    (r"layer_scale_2$", "mlp_scaling.weight"),
    (r"mlp\.fc1\.", "mlp.in_dense."),
    (r"mlp\.fc2\.", "mlp.out_dense."),
    (r"mlp\.dwconv\.dwconv\.", "mlp.depth_wise."),
    (r"^head\.", "classifier."),
]


def to_hugging_face(name: str) -> str:
    for pattern, theirs in HUGGING_FACE:
        if match := re.search(pattern, name):
            before = int(match[1]) - 1 if match.groups() else 0
            name = name[: match.start()] + theirs.format(before=before) + name[match.end() :]
    return name


def to_mmpretrain(name: str) -> str:
    if name.startswith("head."):
        return name.replace("head.", "head.fc.")
    name = re.sub(r"^(patch_embed\d)\.proj\.", r"\1.projection.", name)
    name = re.sub(r"^block(\d)", r"blocks\1", name).replace("mlp.dwconv.dwconv.", "mlp.dwconv.")
    name = name.replace("unit.conv0.", "unit.DW_conv.").replace("unit.conv_spatial.", "unit.DW_D_conv.")
    return f"backbone.{name}"


def to_mmsegmentation_0(name: str) -> str:
    return f"backbone.{name}"


def to_mmsegmentation_1(name: str) -> str:
    return f"backbone.{name}".replace("mlp.dwconv.dwconv.", "mlp.dwconv.")


def renamed(rename) -> dict[str, Tensor]:
    return {rename(name): tensor for name, tensor in filled_b0().items()}


def without_head(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(("head.", "classifier."))}


def decoder(head: str = "fpn") -> dict[str, Tensor]:
    """The tensors beside the backbone of mmsegmentation's whole segmenters, by its own names."""
    names = recorded("mmseg_b0")[f"{head}_van_b0_150"]["names"]
    return filled({name: shape for name, shape in names.items() if not name.startswith("backbone.")})


def unused() -> dict[str, Tensor]:
    return {"van.layernorm.weight": torch.ones(256), "van.layernorm.bias": torch.zeros(256)}


FILES = {  # family, content, classes
    "official": ("official", lambda: renamed(str), 1000),
    "official, in parallel": ("official", lambda: renamed("module.{}".format), 1000),
    "official, compiled": ("official", lambda: renamed("_orig_mod.{}".format), 1000),
    "official, both": ("official", lambda: renamed("module._orig_mod.{}".format), 1000),
    "Hugging Face": ("huggingface", lambda: {**renamed(to_hugging_face), **unused()}, 1000),
    "Hugging Face, backbone": (
        "huggingface",
        lambda: {
            name.removeprefix("van."): tensor
            for name, tensor in {**without_head(renamed(to_hugging_face)), **unused()}.items()
        },
        0,
    ),
    "mmpretrain": ("mmpretrain", lambda: renamed(to_mmpretrain), 1000),
    "mmpretrain, preprocessor": (
        "mmpretrain",
        lambda: {"data_preprocessor.mean": torch.zeros(3), **renamed(to_mmpretrain)},
        1000,
    ),
    "mmsegmentation 0": (
        "mmsegmentation",
        lambda: {**{to_mmsegmentation_0(n): t for n, t in without_head(filled_b0()).items()}, **decoder()},
        0,
    ),
    "mmsegmentation 1": (
        "mmsegmentation",
        lambda: {**{to_mmsegmentation_1(n): t for n, t in without_head(filled_b0()).items()}, **decoder()},
        0,
    ),
}


@pytest.mark.parametrize(
    ("record", "rename", "extra"),
    [
        ("official_keys_b0", str, []),
        ("hf_keys_b0", to_hugging_face, ["van.layernorm.weight", "van.layernorm.bias"]),
        ("mmpretrain_keys_b0", to_mmpretrain, []),
    ],
)
def test_this_files_own_table_gives_the_recorded_names(record, rename, extra):
    """The tables above were written from the paper's side, the recorded names come from the other libraries."""
    names = {rename(name): list(tensor.shape) for name, tensor in filled_b0().items()}
    wanted = recorded(record)
    assert names.keys() == wanted.keys() - set(extra)
    assert all(shape == list(wanted[name]) for name, shape in names.items())


@pytest.mark.parametrize("file", FILES)
def test_every_tensor_comes_to_its_official_name(file):
    family, content, classes = FILES[file]
    wanted = filled_b0() if classes else without_head(filled_b0())
    weights = official_state(content())
    assert weights.family == family
    assert weights.state.keys() == wanted.keys()
    assert all(weights.state[name].equal(tensor) for name, tensor in wanted.items())
    assert (weights.model, weights.num_classes, weights.in_chans) == ("van_b0", classes, 3)


@pytest.mark.parametrize("record", ["hf_keys_b0", "mmpretrain_keys_b0", "official_keys_b0"])
def test_recorded_files_load_strictly(record):
    weights = official_state({name: torch.zeros(shape) for name, shape in recorded(record).items()})
    model = timm.create_model("van_b0", device="meta")
    check_fit(model.state_dict(), weights.state, source=record)
    assert list(weights.state) == list(model.state_dict()) or record != "official_keys_b0"


def save(way: str, tensors: dict[str, Tensor], folder: Path) -> Path:
    path = folder / {"pth.tar": "van_tiny_754.pth.tar", "safetensors": "model.safetensors"}.get(way, f"{way}.pth")
    if way == "safetensors":
        safetensors.torch.save_file(tensors, path)
    elif way == "pth.tar":
        args = argparse.Namespace(model="van_tiny", lr=1e-3, layers=[1, 2])
        torch.save({"epoch": 300, "arch": "van_tiny", "state_dict": tensors, "args": args, "metric": 75.4}, path)
    else:
        torch.save(
            {"meta": {"classes": ["a"]}, "state_dict": tensors}, path, _use_new_zipfile_serialization=way == "zip"
        )
    return path


@pytest.mark.parametrize(
    ("file", "way"),
    [
        ("official", "pth.tar"),
        ("official", "safetensors"),
        ("official", "legacy"),
        ("Hugging Face", "zip"),
        ("Hugging Face", "safetensors"),
        ("mmpretrain", "zip"),
        ("mmpretrain", "legacy"),
    ],
)
def test_a_network_loaded_from_disk_answers_as_the_released_one(file, way, tmp_path):
    weights = read_weights(save(way, FILES[file][1](), tmp_path))
    model = timm.create_model(weights.model, dtype=torch.float64, device="cpu").eval()
    assert load_strictly(model, weights.state, source=file) == ()
    with torch.no_grad():
        assert distance_from_recorded("van_b0", model(picture())) < 1e-6


@pytest.mark.parametrize("file", ["mmsegmentation 0", "mmsegmentation 1"])
def test_a_segmenters_backbone_loads_with_its_norm_and_its_pictures(file, tmp_path):
    weights = read_weights(save("zip", FILES[file][1](), tmp_path))
    assert weights.norm_eps == 1e-5
    assert weights.preprocess.mean == IMAGENET
    model = timm.create_model("van_b0", num_classes=0, norm_eps=weights.norm_eps).double().eval()
    load_strictly(model, weights.state, source=file)
    reference = timm.create_model("van_b0", num_classes=0, norm_eps=1e-5).double().eval()
    reference.load_state_dict(without_head(filled_b0()))
    with torch.no_grad():
        assert model(picture()).equal(reference(picture()))


def test_what_is_left_out_is_told():
    (note,) = official_state(FILES["Hugging Face"][1]()).notes
    assert note == "left out van.layernorm.weight, van.layernorm.bias: stored by huggingface, never used by the network"
    weights = official_state(FILES["mmsegmentation 1"][1]())
    assert weights.notes == ()
    assert weights.without_decoder == "left out 60 tensors of decode_head, neck: only the backbone is used"
    averages = {f"ema_backbone_block1_{place}": torch.zeros(1) for place in range(6)}
    (note,) = official_state(FILES["mmsegmentation 0"][1]() | averages).notes
    assert note.startswith("left out ema_backbone_block1_0, ema_backbone_block1_1, ")
    assert note.endswith("ema_backbone_block1_3 and 2 more: stored by mmsegmentation, never used by the network")
    assert official_state(filled_b0()).notes == ()


@pytest.mark.parametrize(
    ("file", "mean", "norm_eps"),
    [
        ("official", HALF, 1e-6),
        ("Hugging Face", HALF, 1e-6),
        ("mmpretrain", HALF, 1e-6),
        ("mmsegmentation 0", IMAGENET, 1e-5),
        ("mmsegmentation 1", IMAGENET, 1e-5),
    ],
)
def test_each_family_brings_its_preprocessing_and_norm(file, mean, norm_eps):
    weights = official_state(FILES[file][1]())
    assert (weights.preprocess.mean, weights.norm_eps) == (mean, norm_eps)
    assert weights.preprocess.std == (HALF if mean == HALF else (0.229, 0.224, 0.225))
    assert (weights.preprocess.resize_px, weights.preprocess.size_px) == (248, 224)
    assert weights.preprocess.interpolation == "bicubic"


@pytest.mark.parametrize("classes", [21_841, 21_842])
def test_imagenet_22k_wants_imagenets_mean(classes):
    content = renamed(to_mmpretrain)
    content["head.fc.weight"], content["head.fc.bias"] = torch.zeros(classes, 256), torch.zeros(classes)
    weights = official_state(content)
    assert (weights.preprocess.mean, weights.num_classes, weights.norm_eps) == (IMAGENET, classes, 1e-6)
    assert weights.preprocess != Preprocess()


@pytest.mark.parametrize("name", VARIANTS)
def test_the_size_is_read_off_the_tensors(name):
    assert variant_of(timm.create_model(name, device="meta").state_dict()) == name


def test_input_channels_are_read_off_the_tensors():
    assert official_state(timm.create_model("van_b1", in_chans=5, device="meta").state_dict()).in_chans == 5


def test_tensors_of_another_network_are_refused():
    with pytest.raises(UnknownFormat, match=r"conv1.weight, bn1.weight belong to no known VAN family \(huggingface"):
        recognise({"conv1.weight": torch.ones(1), "bn1.weight": torch.ones(1)})


def test_sizes_of_no_variant_are_refused_unless_the_network_is_known():
    state = VAN(**TINY).state_dict()
    with pytest.raises(
        UnknownFormat, match=r"channels \[4, 6, 8, 10\] with depths \[1, 1, 1, 1\] are no VAN; known: van_b0"
    ):
        official_state(state)
    assert official_state(state, model="mine").model == "mine"


@pytest.mark.parametrize("stem", [None, torch.ones(3)])
def test_half_a_network_is_refused(stem):
    state = {"patch_embed1.proj.bias": torch.ones(3)} | ({} if stem is None else {"patch_embed1.proj.weight": stem})
    with pytest.raises(UnknownFormat, match=r"are no VAN|no whole VAN"):
        official_state(state)
    with pytest.raises(UnknownFormat, match="no whole VAN"):
        official_state(state, model="van_b0")


def test_a_files_errors_name_the_file(tmp_path):
    torch.save({"fc.weight": torch.ones(2)}, tmp_path / "resnet.pth")
    with pytest.raises(UnknownFormat, match=r"resnet.pth: tensor names such as fc.weight"):
        read_weights(tmp_path / "resnet.pth")
    whole = save("zip", filled_b0(), tmp_path).read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TruncatedFile, match=r"cut.pth is cut off"):
        read_weights(tmp_path / "cut.pth")


def tiny() -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    return VAN(**TINY), {name: tensor + 1 for name, tensor in VAN(**TINY).state_dict().items()}


def test_strict_loading_lists_everything_that_does_not_fit_and_changes_nothing():
    model, state = tiny()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    del state["norm2.bias"], state["block3.0.mlp.fc1.weight"]
    state |= {"norm5.bias": torch.ones(3), "extra": torch.ones(1), "norm1.weight": torch.ones(7)}
    with pytest.raises(NamesMismatch) as caught:
        load_strictly(model, state, source="mine.pth")
    error = caught.value
    assert error.missing == ("norm2.bias", "block3.0.mlp.fc1.weight")
    assert error.left_over == ("norm5.bias", "extra")
    assert error.misshapen == ("norm1.weight (7,) instead of (4,)",)
    for told in ("mine.pth does not fit", "missing (2)", "left over (2)", "of another shape (1)", "norm5.bias, extra"):
        assert told in str(error)
    assert all(model.state_dict()[name].equal(tensor) for name, tensor in before.items())


def test_strict_loading_takes_every_tensor():
    model, state = tiny()
    assert load_strictly(model, state, source="mine.pth") == ()
    assert all(model.state_dict()[name].equal(tensor) for name, tensor in state.items())


def test_a_classifier_of_other_classes_stays_an_error_until_asked_for():
    model, state = tiny()
    state["head.weight"], state["head.bias"] = torch.ones(5, 10), torch.ones(5)
    with pytest.raises(NamesMismatch, match="Only the classifier differs: ask for the number of classes you want"):
        load_strictly(model, state, source="mine.pth")
    fresh = model.head.weight.clone()
    (note,) = load_strictly(model, state, source="mine.pth", new_head=True)
    assert note == "the classifier of mine.pth (5 classes) was left out: 3 were asked for"
    assert model.head.weight.equal(fresh)
    assert model.norm1.weight.equal(state["norm1.weight"])


def test_a_new_head_excuses_no_other_tensor():
    model, state = tiny()
    del state["norm1.weight"], state["head.weight"], state["head.bias"]
    with pytest.raises(NamesMismatch, match=r"missing \(1\): norm1.weight"):
        load_strictly(model, state, source="mine.pth", new_head=True)


@pytest.mark.parametrize("stored", [True, False])
def test_a_new_head_serves_where_either_side_has_none(stored):
    model, state = tiny()
    if stored:
        model.reset_classifier(0)
    else:
        del state["head.weight"], state["head.bias"]
    notes = load_strictly(model, state, source="mine.pth", new_head=True)
    assert notes == (("the classifier of mine.pth (3 classes) was left out: 0 were asked for",) if stored else ())
    assert model.norm1.weight.equal(state["norm1.weight"])


def test_layers_that_follow_the_classes_are_replaced_by_their_names():
    model, state = tiny()
    state["norm4.weight"] = torch.ones(3)
    notes = load_strictly(
        model, state, source="mine.pth", classifier=("head", "norm4"), new_head=True, stored_classes=9
    )
    assert notes == ("the classifier of mine.pth (9 classes) was left out: 3 were asked for",)
    assert model.norm4.weight.equal(torch.ones(10))
    assert model.norm3.weight.equal(state["norm3.weight"])


def test_the_weights_of_another_size_are_told_as_such():
    model = timm.create_model("van_b1", device="meta")
    with pytest.raises(NamesMismatch, match="The file holds the weights of van_b0") as caught:
        load_strictly(model, filled_b0(), source="tiny.pth")
    assert "patch_embed1.proj.weight (32, 3, 7, 7) instead of (64, 3, 7, 7)" in caught.value.misshapen
