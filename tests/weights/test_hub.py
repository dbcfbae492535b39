import argparse
import hashlib
import json
import os
import pickle
import socket
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

from parity import distance_from_recorded, filled, filled_b0, image
from van.checkpoint import Checkpoint
from van.errors import CheckpointError, HashMismatch, HubError, StateDictMismatch, TruncatedFile, UnsafePickle
from van.preprocess import IMAGENET_MEAN, CenterCropPreprocess
from van.weights.hub import collect_notes
from weights.local_hub import LocalHub, Short

HERE = Path(__file__).parent
OFFICIAL = "Visual-Attention-Network/VAN-Tiny-original"
FILE = "van_tiny_754.pth.tar"


class CreatesFolder:
    """An object whose pickle creates ``path`` when it is loaded without restrictions."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def released_file(path: Path) -> Path:
    """Write a file like the authors': the tensors, and an ``argparse.Namespace`` beside them."""
    content = {"epoch": 300, "arch": "van_tiny", "state_dict": filled_b0(), "args": argparse.Namespace(lr=1e-3)}
    torch.save(content, path)
    return path


def cases(run_python, situation: str, endpoint: str, folder: Path) -> dict:
    """Return what ``hub_cases`` prints in an interpreter with its hub at ``endpoint`` and its cache in ``folder``."""
    script = f"import runpy; runpy.run_path({str(HERE / 'hub_cases.py')!r}, run_name='__main__')"
    environment = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_CACHE": str(folder / "hf" / "hub"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_OFFLINE": "1" if situation == "offline" else "0",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")]),
    }
    return json.loads(run_python(script, situation, str(folder / "other"), **environment).splitlines()[-1])


@pytest.fixture(scope="module")
def hub_that_is_down(tmp_path_factory, run_python):
    """The result with a hub that refuses every connection."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        return cases(run_python, "down", endpoint, tmp_path_factory.mktemp("down"))


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory, run_python) -> dict:
    """The results of every case of ``hub_cases``, with a real server on this machine."""
    folder = tmp_path_factory.mktemp("hub")
    whole = released_file(folder / FILE).read_bytes()
    repositories = {
        OFFICIAL: {FILE: whole},
        "us/safe": {"model.safetensors": safetensors.torch.save(filled_b0())},
        "us/short": {FILE: Short(whole)},
        "us/cut": {FILE: whole[: len(whole) // 2]},
        "us/hostile": {FILE: pickle.dumps({"state_dict": CreatesFolder(folder / "ran")}, protocol=2)},
        "us/broken": {FILE: 403},
    }
    with LocalHub(repositories) as hub:
        results = {**cases(run_python, "served", hub.url, folder), "requests": hub.requests}
        results |= cases(run_python, "offline", hub.url, folder)
    results["ran"] = (folder / "ran").exists()
    results["other cache"] = [path.name for path in (folder / "other").glob("**/*.tar")]
    return results


def test_downloaded_weights_have_the_outputs_of_the_released_network(subtests, outcomes):
    for case in ["plain", "own cache", "safetensors", "at a revision", "stopped, cached", "offline, cached"]:
        with subtests.test(case=str(case)):
            assert outcomes[case]["distance"] < 1e-6
            assert outcomes[case]["shapes"] == [[1, 1000]]


def test_the_released_file_is_requested(outcomes):
    requests = [line for line in outcomes["requests"] if line.startswith("GET") and OFFICIAL in line]
    assert requests
    assert all(line.endswith(f"/{FILE}") for line in requests)
    assert outcomes["other cache"] == [FILE]


def test_another_number_of_classes_replaces_the_head_of_the_downloaded_network(outcomes):
    assert outcomes["ten classes"]["shapes"] == [[1, 10]]
    assert outcomes["ten classes"]["pooled"] == pytest.approx(outcomes["plain"]["pooled"], abs=1e-9)
    notes = [line for line in outcomes["ten classes"]["warnings"] if "classifier" in line]
    assert [f"{OFFICIAL}/{FILE}" in note and "1000 classes" in note for note in notes] == [True]
    assert not any("classifier" in line for line in outcomes["plain"]["warnings"])


def test_features_only_models_load_the_downloaded_backbone(outcomes):
    assert outcomes["features"]["shapes"] == [[1, 64, 13, 17], [1, 256, 4, 5]]
    assert outcomes["features"]["pooled"] == pytest.approx(outcomes["plain"]["pooled"], abs=1e-9)
    assert outcomes["no classes"]["pooled"] == outcomes["plain"]["pooled"]


def test_the_weights_are_adapted_to_one_input_channel(outcomes):
    assert outcomes["one channel"]["shapes"] == [[1, 1000]]


def test_the_license_note_is_logged_once_per_process(outcomes):
    lines = [
        line for name, outcome in outcomes.items() if isinstance(outcome, dict) for line in outcome.get("warnings", [])
    ]
    assert sum("commercial use" in line for line in lines) == 2  # once in each of the two interpreters


def test_the_pretrained_cfg_holds_no_tensors(outcomes):
    assert "state_dict" not in outcomes["plain"]["config_keys"]
    assert "hf_hub_id" in outcomes["plain"]["config_keys"]


def test_every_failure_is_one_van_error_that_names_the_file(subtests, outcomes):
    for case, error, message in [
        ("no repository", "HubError", "us/nowhere/van_tiny_754.pth.tar: the repository does not exist"),
        ("no file", "HubError", "us/safe/other.pth: the repository has no such file"),
        ("not a name", "HubError", "van_b0: cannot download not a/valid/name/"),
        ("short transfer", "HubError", "us/short/van_tiny_754.pth.tar: Consistency check failed"),
        ("cut file", "TruncatedFile", "van_tiny_754.pth.tar: "),
        ("hostile", "UnsafePickle", "mkdir"),
        ("another size", "StateDictMismatch", "van_b0"),
        ("out of order", "HubError", "us/broken/van_tiny_754.pth.tar: "),
        ("van_b4", "HubError", "mmpretrain: van-b4_3rdparty_in1k"),
        ("offline, not cached", "HubError", "HF_HUB_OFFLINE is set, and the file is not in the local cache"),
    ]:
        with subtests.test(case=str(case), error=str(error), message=str(message)):
            assert outcomes[case]["error"] == error
            assert message in outcomes[case]["message"]
            if error == "HubError":
                assert "\n" not in outcomes[case]["message"]
                assert "pretrained_cfg_overlay=dict(file=...)" in outcomes[case]["message"]


def test_the_error_for_a_truncated_file_in_the_cache_says_to_delete_it(outcomes):
    assert "delete it" in outcomes["cut file"]["message"]


def test_no_code_in_a_downloaded_pickle_runs(outcomes):
    assert outcomes["ran"] is False


# Local files, through timm.


def create_from(path: Path, name: str = "van_b0", **options) -> torch.nn.Module:
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(path)}, **options).eval()


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    found = {"pth.tar": released_file(folder / FILE), "safetensors": folder / "model.safetensors"}
    safetensors.torch.save_file(filled_b0(), found["safetensors"])
    headless = {name: tensor for name, tensor in filled_b0().items() if not name.startswith("head.")}
    found["backbone"] = folder / "backbone.safetensors"
    safetensors.torch.save_file(headless, found["backbone"])
    found["ten classes"] = folder / "ten.pth"
    torch.save({**headless, "head.weight": torch.ones(10, 256), "head.bias": torch.arange(10.0)}, found["ten classes"])
    found["segmenter"] = folder / "fpn.pth"
    torch.save({"state_dict": {f"backbone.{name}": t for name, t in headless.items()}}, found["segmenter"])
    return found


def test_a_file_loads_through_timm(subtests, files):
    for kind in ["pth.tar", "safetensors"]:
        with subtests.test(kind=str(kind)):
            model = create_from(files[kind]).double()
            with torch.no_grad():
                assert distance_from_recorded("van_b0", model(image())) < 1e-6
            assert "state_dict" not in model.pretrained_cfg
            assert model.pretrained_cfg["file"] == str(files[kind])


def test_a_file_determines_the_number_of_classes(files):
    model = create_from(files["ten classes"])
    assert (model.num_classes, model.head.bias.tolist()) == (10, list(range(10)))
    assert create_from(files["ten classes"], num_classes=10).head.bias.tolist() == list(range(10))
    assert create_from(files["ten classes"], num_classes=3).head.bias.tolist() == [0, 0, 0]


def test_the_head_is_replaced_only_for_another_number_of_classes(files, caplog):
    create_from(files["safetensors"])
    create_from(files["safetensors"], num_classes=1000)
    create_from(files["safetensors"], features_only=True)
    assert not caplog.records
    create_from(files["safetensors"], num_classes=7)
    assert "1000 classes" in caplog.text
    assert str(files["safetensors"]) in caplog.text


def test_notes_can_be_collected_instead_of_logged(files, caplog):
    with collect_notes() as notes:
        create_from(files["safetensors"], num_classes=6)
    assert [str(files["safetensors"]) in note and "1000 classes" in note for note in notes] == [True]
    assert not caplog.records


def test_a_file_without_a_head_needs_num_classes(files):
    with pytest.raises(StateDictMismatch, match=r"missing \(2\): head.weight, head.bias\n.*num_classes"):
        create_from(files["backbone"])
    assert create_from(files["backbone"], num_classes=0).num_classes == 0
    assert create_from(files["backbone"], num_classes=4).head.weight.shape == (4, 256)
    assert len(create_from(files["backbone"], features_only=True)(torch.randn(1, 3, 32, 32))) == 4


def test_a_replaced_head_permits_no_other_mismatch(files, tmp_path):
    tensors = filled_b0()
    del tensors["block2.1.norm1.weight"]
    tensors["norm9.weight"] = torch.ones(1)
    safetensors.torch.save_file(tensors, tmp_path / "file.safetensors")
    for options in ({}, {"num_classes": 5}, {"features_only": True}):
        with pytest.raises(StateDictMismatch) as caught:
            create_from(tmp_path / "file.safetensors", **options)
        assert (caught.value.missing, caught.value.unexpected) == (("block2.1.norm1.weight",), ("norm9.weight",))


def test_a_file_determines_preprocessing_and_eps(files, tmp_path):
    assert create_from(files["safetensors"]).pretrained_cfg["mean"] == (0.5, 0.5, 0.5)
    segmenter = create_from(files["segmenter"], num_classes=0)
    assert segmenter.pretrained_cfg["mean"] == IMAGENET_MEAN
    assert segmenter.norm1.eps == 1e-5
    mine = timm.create_model(
        "van_b0", pretrained=True, num_classes=0, norm_eps=1e-3,
        pretrained_cfg_overlay={"file": str(files["segmenter"]), "mean": (0.1, 0.2, 0.3)},
    )  # fmt: skip
    assert (mine.norm1.eps, mine.pretrained_cfg["mean"]) == (1e-3, (0.1, 0.2, 0.3))


def test_a_given_pretrained_cfg_takes_precedence(files):
    config = {**timm.get_pretrained_cfg("van_b0").to_dict(), "file": str(files["segmenter"]), "crop_pct": 0.5}
    model = timm.create_model("van_b0", pretrained=True, num_classes=0, pretrained_cfg=config)
    assert (model.pretrained_cfg["crop_pct"], model.pretrained_cfg["mean"]) == (0.5, (0.5, 0.5, 0.5))
    assert model.norm1.weight.equal(filled_b0()["norm1.weight"])


def test_a_checkpoint_loads_through_timm_with_its_preprocessing(tmp_path):
    model = timm.create_model("van_b0", num_classes=2)
    Checkpoint(
        task="classify", model="van_b0", class_names=("cat", "dog"), state=model.state_dict(),
        preprocess=CenterCropPreprocess(image_size=96, mean=(0.4, 0.4, 0.4)), training={"step": torch.ones(1)},
        model_options={"norm_eps": 1e-4},
    ).save(tmp_path / "best.safetensors")  # fmt: skip
    loaded = create_from(tmp_path / "best.safetensors")
    assert loaded.head.weight.equal(model.head.weight)
    assert (loaded.pretrained_cfg["input_size"], loaded.pretrained_cfg["pool_size"]) == ((3, 96, 96), (3, 3))
    assert (loaded.pretrained_cfg["mean"], loaded.norm4.eps) == ((0.4, 0.4, 0.4), 1e-4)


def test_a_network_of_custom_sizes_loads(tmp_path):
    options = {"dims": (4, 6, 8, 10), "depths": (1, 1, 1, 1), "kernel_size": 11, "num_classes": 3}
    model = timm.create_model("van_b0", **options)
    torch.save(model.state_dict(), tmp_path / "mine.pth")
    assert create_from(tmp_path / "mine.pth", **options).norm4.weight.equal(model.norm4.weight)


def test_the_file_determines_the_input_channels_which_can_be_adapted(tmp_path, files):
    torch.save(timm.create_model("van_b0", in_chans=4, num_classes=2).state_dict(), tmp_path / "four.pth")
    assert create_from(tmp_path / "four.pth").in_chans == 4
    stem = create_from(files["safetensors"], in_chans=1).patch_embed1.proj.weight
    torch.testing.assert_close(stem, filled_b0()["patch_embed1.proj.weight"].sum(1, keepdim=True))


def test_timms_local_folders_round_trip(tmp_path):
    model = timm.create_model("van_b0", num_classes=4, kernel_size=11)
    arguments = {"kernel_size": 11, "num_classes": 4}
    timm.models.save_for_hf(model, tmp_path, model_args=arguments, safe_serialization=True)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert all(x.equal(y) for x, y in zip(loaded.parameters(), model.parameters(), strict=True))


def test_a_given_state_dict_is_checked_too():
    tensors = filled_b0()
    model = timm.create_model("van_b0", pretrained=True, pretrained_cfg_overlay={"state_dict": tensors})
    assert model.head.weight.equal(tensors["head.weight"])
    del tensors["norm1.bias"]
    with pytest.raises(StateDictMismatch, match=r"the given state_dict: .*\n  missing \(1\): norm1.bias"):
        timm.create_model("van_b0", pretrained=True, pretrained_cfg_overlay={"state_dict": tensors})


def test_a_file_is_read_safely_through_timm(tmp_path, files):
    torch.save({"state_dict": filled_b0(), "args": CreatesFolder(tmp_path / "ran")}, tmp_path / "hostile.pth")
    with pytest.raises(UnsafePickle, match=r"posix.mkdir"):
        create_from(tmp_path / "hostile.pth")
    assert not (tmp_path / "ran").exists()
    content = files["safetensors"].read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[:5000])
    with pytest.raises(TruncatedFile):
        create_from(tmp_path / "cut.safetensors")
    digits = hashlib.sha256(content).hexdigest()[:8]
    (tmp_path / f"van-{digits}.safetensors").write_bytes(content)
    assert create_from(tmp_path / f"van-{digits}.safetensors").num_classes == 1000
    (tmp_path / "van-01234567.safetensors").write_bytes(content)
    with pytest.raises(HashMismatch, match="01234567"):
        create_from(tmp_path / "van-01234567.safetensors")
    with pytest.raises(CheckpointError, match="no such file"):
        create_from(tmp_path / "nowhere.pth")


def test_the_error_for_a_variant_without_weights_on_the_hub_names_their_source(subtests):
    for name in ["van_b4", "van_b5", "van_b6"]:
        with subtests.test(name=name), pytest.raises(HubError, match=f"{name}: .*mmpretrain: .*dict\\(file="):
            timm.create_model(name, pretrained=True)


def test_a_larger_variant_loads_from_a_file(tmp_path):
    shapes = {name: tuple(t.shape) for name, t in timm.create_model("van_b1", device="meta").state_dict().items()}
    torch.save(filled(shapes), tmp_path / "b1.pth")
    model = create_from(tmp_path / "b1.pth", "van_b1").double()
    with torch.no_grad():
        assert distance_from_recorded("van_b1", model(image())) < 1e-6


def test_the_error_names_a_hub_that_is_down(hub_that_is_down):
    outcome = hub_that_is_down["down, not cached"]
    assert outcome["error"] == "HubError"
    assert "Visual-Attention-Network/VAN-Small-original/van_small_811.pth.tar: http://127.0.0.1" in outcome["message"]
    assert "local cache" in outcome["message"]
