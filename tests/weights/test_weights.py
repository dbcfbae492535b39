import argparse
import re
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from parity import distance_from_recorded, filled, filled_b0, image, recorded
from van import VAN
from van.errors import StateDictMismatch, TruncatedFile, UnknownFormat
from van.preprocess import CenterCropPreprocess
from van.weights.formats import (
    check_state_dict,
    convert_weights,
    detect_family,
    detect_variant,
    load_state_dict_strict,
    read_weights,
)
from van.weights.published import VARIANTS

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


def test_the_tables_of_this_file_give_the_recorded_names(subtests):
    """The tables above were written independently of the recorded names, which come from the other libraries."""
    for record, rename, extra in [
        ("official_keys_b0", str, []),
        ("hf_keys_b0", to_hugging_face, ["van.layernorm.weight", "van.layernorm.bias"]),
        ("mmpretrain_keys_b0", to_mmpretrain, []),
    ]:
        with subtests.test(record=str(record), rename=str(rename), extra=str(extra)):
            names = {rename(name): list(tensor.shape) for name, tensor in filled_b0().items()}
            expected = recorded(record)
            assert names.keys() == expected.keys() - set(extra)
            assert all(shape == list(expected[name]) for name, shape in names.items())


def test_every_tensor_gets_its_official_name(subtests):
    for file in FILES:
        with subtests.test(file=str(file)):
            family, content, classes = FILES[file]
            expected = filled_b0() if classes else without_head(filled_b0())
            weights = convert_weights(content())
            assert weights.family == family
            assert weights.state.keys() == expected.keys()
            assert all(weights.state[name].equal(tensor) for name, tensor in expected.items())
            assert (weights.model, weights.num_classes, weights.in_chans) == ("van_b0", classes, 3)


def test_recorded_files_load_strictly(subtests):
    for record in ["hf_keys_b0", "mmpretrain_keys_b0", "official_keys_b0"]:
        with subtests.test(record=str(record)):
            weights = convert_weights({name: torch.zeros(shape) for name, shape in recorded(record).items()})
            model = timm.create_model("van_b0", device="meta")
            check_state_dict(model.state_dict(), weights.state, source=record)
            assert list(weights.state) == list(model.state_dict()) or record != "official_keys_b0"


def save(layout: str, tensors: dict[str, Tensor], folder: Path) -> Path:
    path = folder / {"pth.tar": "van_tiny_754.pth.tar", "safetensors": "model.safetensors"}.get(layout, f"{layout}.pth")
    if layout == "safetensors":
        safetensors.torch.save_file(tensors, path)
    elif layout == "pth.tar":
        args = argparse.Namespace(model="van_tiny", lr=1e-3, layers=[1, 2])
        torch.save({"epoch": 300, "arch": "van_tiny", "state_dict": tensors, "args": args, "metric": 75.4}, path)
    else:
        torch.save(
            {"meta": {"classes": ["a"]}, "state_dict": tensors}, path, _use_new_zipfile_serialization=layout == "zip"
        )
    return path


def test_a_network_loaded_from_disk_has_the_outputs_of_the_released_one(subtests, tmp_path_factory):
    for file, layout in [
        ("official", "pth.tar"),
        ("official", "safetensors"),
        ("official", "legacy"),
        ("Hugging Face", "zip"),
        ("Hugging Face", "safetensors"),
        ("mmpretrain", "zip"),
        ("mmpretrain", "legacy"),
    ]:
        with subtests.test(file=str(file), layout=str(layout)):
            tmp_path = tmp_path_factory.mktemp("case")
            weights = read_weights(save(layout, FILES[file][1](), tmp_path))
            model = timm.create_model(weights.model, dtype=torch.float64, device="cpu").eval()
            assert load_state_dict_strict(model, weights.state, source=file) == ()
            with torch.no_grad():
                assert distance_from_recorded("van_b0", model(image())) < 1e-6


def test_a_segmenters_backbone_loads_with_its_eps_and_preprocessing(subtests, tmp_path_factory):
    for file in ["mmsegmentation 0", "mmsegmentation 1"]:
        with subtests.test(file=str(file)):
            tmp_path = tmp_path_factory.mktemp("case")
            weights = read_weights(save("zip", FILES[file][1](), tmp_path))
            assert weights.norm_eps == 1e-5
            assert weights.preprocess.mean == IMAGENET
            model = timm.create_model("van_b0", num_classes=0, norm_eps=weights.norm_eps).double().eval()
            load_state_dict_strict(model, weights.state, source=file)
            reference = timm.create_model("van_b0", num_classes=0, norm_eps=1e-5).double().eval()
            reference.load_state_dict(without_head(filled_b0()))
            with torch.no_grad():
                assert model(image()).equal(reference(image()))


def test_skipped_tensors_are_in_the_notes():
    (note,) = convert_weights(FILES["Hugging Face"][1]()).notes
    assert "van.layernorm.weight, van.layernorm.bias" in note
    assert "huggingface" in note
    weights = convert_weights(FILES["mmsegmentation 1"][1]())
    assert weights.notes == ()
    assert "60 tensors of decode_head, neck" in weights.skipped_decoder_note
    averages = {f"ema_backbone_block1_{index}": torch.zeros(1) for index in range(6)}
    (note,) = convert_weights(FILES["mmsegmentation 0"][1]() | averages).notes
    assert "ema_backbone_block1_0, ema_backbone_block1_1, " in note
    assert "ema_backbone_block1_3 and 2 more" in note
    assert "mmsegmentation" in note
    assert convert_weights(filled_b0()).notes == ()


def test_each_family_has_its_preprocessing_and_eps(subtests):
    for file, mean, norm_eps in [
        ("official", HALF, 1e-6),
        ("Hugging Face", HALF, 1e-6),
        ("mmpretrain", HALF, 1e-6),
        ("mmsegmentation 0", IMAGENET, 1e-5),
        ("mmsegmentation 1", IMAGENET, 1e-5),
    ]:
        with subtests.test(file=str(file), mean=str(mean), norm_eps=str(norm_eps)):
            weights = convert_weights(FILES[file][1]())
            assert (weights.preprocess.mean, weights.norm_eps) == (mean, norm_eps)
            assert weights.preprocess.std == (HALF if mean == HALF else (0.229, 0.224, 0.225))
            assert (weights.preprocess.resize_size, weights.preprocess.image_size) == (248, 224)
            assert weights.preprocess.interpolation == "bicubic"


def test_imagenet_22k_weights_have_imagenets_mean(subtests):
    for classes in [21_841, 21_842]:
        with subtests.test(classes=str(classes)):
            content = renamed(to_mmpretrain)
            content["head.fc.weight"], content["head.fc.bias"] = torch.zeros(classes, 256), torch.zeros(classes)
            weights = convert_weights(content)
            assert (weights.preprocess.mean, weights.num_classes, weights.norm_eps) == (IMAGENET, classes, 1e-6)
            assert weights.preprocess != CenterCropPreprocess()


def test_the_variant_is_detected_from_the_tensors(subtests):
    for name in VARIANTS:
        with subtests.test(name=str(name)):
            assert detect_variant(timm.create_model(name, device="meta").state_dict()) == name


def test_the_input_channels_are_detected_from_the_tensors():
    assert convert_weights(timm.create_model("van_b1", in_chans=5, device="meta").state_dict()).in_chans == 5


def test_tensors_of_another_network_are_refused():
    with pytest.raises(UnknownFormat, match=r"huggingface.*conv1.weight, bn1.weight"):
        detect_family({"conv1.weight": torch.ones(1), "bn1.weight": torch.ones(1)})


def test_shapes_of_no_variant_are_refused_unless_the_model_is_given():
    state = VAN(**TINY).state_dict()
    with pytest.raises(UnknownFormat, match=r"van_b0.*\[4, 6, 8, 10\].*\[1, 1, 1, 1\]"):
        convert_weights(state)
    assert convert_weights(state, model="mine").model == "mine"


def test_an_incomplete_network_is_refused(subtests):
    for stem in [None, torch.ones(3)]:
        with subtests.test(stem=str(stem)):
            state = {"patch_embed1.proj.bias": torch.ones(3)} | (
                {} if stem is None else {"patch_embed1.proj.weight": stem}
            )
            with pytest.raises(UnknownFormat, match=r"VAN"):
                convert_weights(state)
            with pytest.raises(UnknownFormat, match=r"patch_embed1.proj.weight"):
                convert_weights(state, model="van_b0")


def test_errors_name_the_file(tmp_path):
    torch.save({"fc.weight": torch.ones(2)}, tmp_path / "resnet.pth")
    with pytest.raises(UnknownFormat, match=r"resnet.pth: .*fc.weight"):
        read_weights(tmp_path / "resnet.pth")
    whole = save("zip", filled_b0(), tmp_path).read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TruncatedFile, match=r"cut.pth: .*truncated"):
        read_weights(tmp_path / "cut.pth")


def tiny() -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    return VAN(**TINY), {name: tensor + 1 for name, tensor in VAN(**TINY).state_dict().items()}


def test_strict_loading_lists_every_mismatch_and_changes_nothing():
    model, state = tiny()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    del state["norm2.bias"], state["block3.0.mlp.fc1.weight"]
    state |= {"norm5.bias": torch.ones(3), "extra": torch.ones(1), "norm1.weight": torch.ones(7)}
    with pytest.raises(StateDictMismatch) as caught:
        load_state_dict_strict(model, state, source="mine.pth")
    error = caught.value
    assert error.missing == ("norm2.bias", "block3.0.mlp.fc1.weight")
    assert error.unexpected == ("norm5.bias", "extra")
    assert error.mismatched == ("norm1.weight expected (4,), got (7,)",)
    for fact in ("mine.pth", "missing (2)", "unexpected (2)", "shape mismatch (1)", "norm5.bias, extra"):
        assert fact in str(error)
    assert all(model.state_dict()[name].equal(tensor) for name, tensor in before.items())


def test_strict_loading_loads_every_tensor():
    model, state = tiny()
    assert load_state_dict_strict(model, state, source="mine.pth") == ()
    assert all(model.state_dict()[name].equal(tensor) for name, tensor in state.items())


def test_a_classifier_of_other_classes_is_an_error_without_new_head():
    model, state = tiny()
    state["head.weight"], state["head.bias"] = torch.ones(5, 10), torch.ones(5)
    with pytest.raises(StateDictMismatch, match=r"classifier.*num_classes"):
        load_state_dict_strict(model, state, source="mine.pth")
    fresh = model.head.weight.clone()
    (note,) = load_state_dict_strict(model, state, source="mine.pth", new_head=True)
    assert "mine.pth" in note
    assert ("5 classes" in note, " 3" in note) == (True, True)
    assert model.head.weight.equal(fresh)
    assert model.norm1.weight.equal(state["norm1.weight"])


def test_new_head_permits_no_other_mismatch():
    model, state = tiny()
    del state["norm1.weight"], state["head.weight"], state["head.bias"]
    with pytest.raises(StateDictMismatch, match=r"missing \(1\): norm1.weight"):
        load_state_dict_strict(model, state, source="mine.pth", new_head=True)


def test_new_head_works_if_either_side_has_no_head(subtests):
    for stored in [True, False]:
        with subtests.test(stored=str(stored)):
            model, state = tiny()
            if stored:
                model.reset_classifier(0)
            else:
                del state["head.weight"], state["head.bias"]
            notes = load_state_dict_strict(model, state, source="mine.pth", new_head=True)
            assert len(notes) == stored
            assert all("mine.pth" in note and "3 classes" in note for note in notes)
            assert model.norm1.weight.equal(state["norm1.weight"])


def test_all_layers_named_as_classifier_are_replaced():
    model, state = tiny()
    state["norm4.weight"] = torch.ones(3)
    notes = load_state_dict_strict(
        model, state, source="mine.pth", classifier=("head", "norm4"), new_head=True, stored_classes=9
    )
    assert ["mine.pth" in note and "9 classes" in note for note in notes] == [True]
    assert model.norm4.weight.equal(torch.ones(10))
    assert model.norm3.weight.equal(state["norm3.weight"])


def test_the_error_names_the_variant_of_the_file():
    model = timm.create_model("van_b1", device="meta")
    with pytest.raises(StateDictMismatch, match="van_b0") as caught:
        load_state_dict_strict(model, filled_b0(), source="tiny.pth")
    assert "patch_embed1.proj.weight expected (64, 3, 7, 7), got (32, 3, 7, 7)" in caught.value.mismatched
