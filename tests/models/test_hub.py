import argparse
import hashlib
import json
import os
import pickle
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

from models.local_hub import LocalHub, Short
from parity import distance_from_recorded, filled, filled_b0, picture
from van.checkpoint import Checkpoint
from van.errors import CheckpointError, HashMismatch, HubError, NamesMismatch, TruncatedFile, UnsafePickle
from van.models.hub import collect_notes
from van.preprocess import IMAGENET_MEAN, Preprocess

HERE = Path(__file__).parent
OFFICIAL = "Visual-Attention-Network/VAN-Tiny-original"
FILE = "van_tiny_754.pth.tar"


class Marked:
    """A pickle of this creates ``path`` when somebody runs it."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def released_file(path: Path) -> Path:
    """A file as the authors' are: the tensors, and an ``argparse.Namespace`` beside them."""
    content = {"epoch": 300, "arch": "van_tiny", "state_dict": filled_b0(), "args": argparse.Namespace(lr=1e-3)}
    torch.save(content, path)
    return path


def cases(run_python, situation: str, endpoint: str, folder: Path) -> dict:
    """What ``hub_cases`` prints in an interpreter whose hub is at ``endpoint`` and whose cache is in ``folder``."""
    run_it = f"import runpy; runpy.run_path({str(HERE / 'hub_cases.py')!r}, run_name='__main__')"
    environment = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(folder / "home"),
        "HF_HUB_CACHE": str(folder / "home" / "hub"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_OFFLINE": "1" if situation == "offline" else "0",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        "PYTHONPATH": str(HERE.parent),
    }
    return json.loads(run_python(run_it, situation, str(folder / "other"), **environment).splitlines()[-1])


@pytest.fixture(scope="module", autouse=True)
def waiting_for_a_hub_that_is_down(tmp_path_factory, run_python):
    """huggingface_hub tries for half a minute, so this waits beside the other tests; the last one asks for it."""
    folder = tmp_path_factory.mktemp("down")
    with socket.socket() as closed, ThreadPoolExecutor(1) as beside:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: every connection is refused
        yield beside.submit(cases, run_python, "down", f"http://127.0.0.1:{closed.getsockname()[1]}", folder)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory, run_python) -> dict:
    """Every case of ``hub_cases``, against a real server on this machine."""
    folder = tmp_path_factory.mktemp("hub")
    whole = released_file(folder / FILE).read_bytes()
    repositories = {
        OFFICIAL: {FILE: whole},
        "us/safe": {"model.safetensors": safetensors.torch.save(filled_b0())},
        "us/short": {FILE: Short(whole)},
        "us/cut": {FILE: whole[: len(whole) // 2]},
        "us/hostile": {FILE: pickle.dumps({"state_dict": Marked(folder / "ran")}, protocol=2)},
        "us/broken": {FILE: 403},
    }
    with LocalHub(repositories) as hub:
        results = {**cases(run_python, "served", hub.url, folder), "requests": hub.requests}
        results |= cases(run_python, "offline", hub.url, folder)
    results["ran"] = (folder / "ran").exists()
    results["other cache"] = [path.name for path in (folder / "other").glob("**/*.tar")]
    return results


@pytest.mark.parametrize(
    "case", ["plain", "own cache", "safetensors", "at a revision", "stopped, cached", "offline, cached"]
)
def test_downloaded_weights_answer_as_the_released_network(outcomes, case):
    assert outcomes[case]["distance"] < 1e-6
    assert outcomes[case]["shapes"] == [[1, 1000]]


def test_the_released_file_itself_is_asked_for(outcomes):
    asked = [line for line in outcomes["requests"] if line.startswith("GET") and OFFICIAL in line]
    assert asked
    assert all(line.endswith(f"/{FILE}") for line in asked)
    assert outcomes["other cache"] == [FILE]


def test_other_classes_get_a_fresh_head_on_the_downloaded_backbone(outcomes):
    assert outcomes["ten classes"]["shapes"] == [[1, 10]]
    assert outcomes["ten classes"]["pooled"] == pytest.approx(outcomes["plain"]["pooled"], abs=1e-9)
    told = f"the classifier of {OFFICIAL}/{FILE} (1000 classes) was left out: 10 were asked for"
    assert told in outcomes["ten classes"]["told"]
    assert not any("classifier" in line for line in outcomes["plain"]["told"])


def test_downloaded_features_are_the_backbones(outcomes):
    assert outcomes["features"]["shapes"] == [[1, 64, 13, 17], [1, 256, 4, 5]]
    assert outcomes["features"]["pooled"] == pytest.approx(outcomes["plain"]["pooled"], abs=1e-9)
    assert outcomes["no classes"]["pooled"] == outcomes["plain"]["pooled"]


def test_pictures_of_one_channel_take_the_weights(outcomes):
    assert outcomes["one channel"]["shapes"] == [[1, 1000]]


def test_the_authors_wish_is_told_once(outcomes):
    lines = [
        line for name, outcome in outcomes.items() if isinstance(outcome, dict) for line in outcome.get("told", [])
    ]
    assert sum("commercial use" in line for line in lines) == 2  # once in each of the two interpreters


def test_no_tensor_stays_in_the_configuration(outcomes):
    assert "state_dict" not in outcomes["plain"]["config_keys"]
    assert "hf_hub_id" in outcomes["plain"]["config_keys"]


@pytest.mark.parametrize(
    ("case", "error", "message"),
    [
        ("no repository", "HubError", "(us/nowhere/van_tiny_754.pth.tar): there is no such repository on the hub"),
        ("no file", "HubError", "(us/safe/other.pth): the repository holds no such file"),
        ("not a name", "HubError", "cannot download the weights of van_b0 (not a/valid/name/"),
        ("short transfer", "HubError", "(us/short/van_tiny_754.pth.tar): Consistency check failed"),
        ("cut file", "TruncatedFile", "van_tiny_754.pth.tar is cut off"),
        ("hostile", "UnsafePickle", "Nothing of it was run"),
        ("another size", "NamesMismatch", "The file holds the weights of van_b0"),
        ("out of order", "HubError", "(us/broken/van_tiny_754.pth.tar): "),
        ("van_b4", "HubError", "van_b4 has no weights on the hub. Public ones: mmpretrain: van-b4_3rdparty_in1k"),
        ("offline, not cached", "HubError", "HF_HUB_OFFLINE is set, and the file is not in the local cache"),
    ],
)
def test_what_goes_wrong_is_one_error_of_ours_in_words(outcomes, case, error, message):
    assert outcomes[case]["error"] == error
    assert message in outcomes[case]["message"]
    if error == "HubError":
        assert "\n" not in outcomes[case]["message"]
        assert "pretrained_cfg_overlay=dict(file=...)" in outcomes[case]["message"]


def test_a_cut_file_in_the_cache_is_named_to_be_deleted(outcomes):
    assert "delete it first" in outcomes["cut file"]["message"]


def test_nothing_of_a_downloaded_pickle_runs(outcomes):
    assert outcomes["ran"] is False


# A file of the user's own, through timm.


def create(path: Path, name: str = "van_b0", **options) -> torch.nn.Module:
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


@pytest.mark.parametrize("kind", ["pth.tar", "safetensors"])
def test_a_file_loads_through_timm(kind, files):
    model = create(files[kind]).double()
    with torch.no_grad():
        assert distance_from_recorded("van_b0", model(picture())) < 1e-6
    assert "state_dict" not in model.pretrained_cfg
    assert model.pretrained_cfg["file"] == str(files[kind])


def test_a_file_brings_its_own_classes(files):
    model = create(files["ten classes"])
    assert (model.num_classes, model.head.bias.tolist()) == (10, list(range(10)))
    assert create(files["ten classes"], num_classes=10).head.bias.tolist() == list(range(10))
    assert create(files["ten classes"], num_classes=3).head.bias.tolist() == [0, 0, 0]


def test_a_head_is_dropped_only_where_other_classes_are_asked_for(files, caplog):
    create(files["safetensors"])
    create(files["safetensors"], num_classes=1000)
    create(files["safetensors"], features_only=True)
    assert not caplog.records
    create(files["safetensors"], num_classes=7)
    assert "(1000 classes) was left out: 7 were asked for" in caplog.text


def test_notes_can_be_collected_instead_of_logged(files, caplog):
    with collect_notes() as notes:
        create(files["safetensors"], num_classes=6)
    assert notes == [f"the classifier of {files['safetensors']} (1000 classes) was left out: 6 were asked for"]
    assert not caplog.records


def test_a_backbone_without_a_head_must_be_asked_for_as_such(files):
    with pytest.raises(NamesMismatch, match=r"missing \(2\): head.weight, head.bias\nOnly the classifier differs"):
        create(files["backbone"])
    assert create(files["backbone"], num_classes=0).num_classes == 0
    assert create(files["backbone"], num_classes=4).head.weight.shape == (4, 256)
    assert len(create(files["backbone"], features_only=True)(torch.randn(1, 3, 32, 32))) == 4


def test_a_new_head_excuses_no_other_tensor(files, tmp_path):
    tensors = filled_b0()
    del tensors["block2.1.norm1.weight"]
    tensors["norm9.weight"] = torch.ones(1)
    safetensors.torch.save_file(tensors, tmp_path / "file.safetensors")
    for options in ({}, {"num_classes": 5}, {"features_only": True}):
        with pytest.raises(NamesMismatch) as caught:
            create(tmp_path / "file.safetensors", **options)
        assert (caught.value.missing, caught.value.left_over) == (("block2.1.norm1.weight",), ("norm9.weight",))


def test_a_files_preprocessing_and_norm_come_along(files, tmp_path):
    assert create(files["safetensors"]).pretrained_cfg["mean"] == (0.5, 0.5, 0.5)
    segmenter = create(files["segmenter"], num_classes=0)
    assert segmenter.pretrained_cfg["mean"] == IMAGENET_MEAN
    assert segmenter.norm1.eps == 1e-5
    mine = timm.create_model(
        "van_b0", pretrained=True, num_classes=0, norm_eps=1e-3,
        pretrained_cfg_overlay={"file": str(files["segmenter"]), "mean": (0.1, 0.2, 0.3)},
    )  # fmt: skip
    assert (mine.norm1.eps, mine.pretrained_cfg["mean"]) == (1e-3, (0.1, 0.2, 0.3))


def test_a_configuration_given_whole_is_kept(files):
    config = {**timm.get_pretrained_cfg("van_b0").to_dict(), "file": str(files["segmenter"]), "crop_pct": 0.5}
    model = timm.create_model("van_b0", pretrained=True, num_classes=0, pretrained_cfg=config)
    assert (model.pretrained_cfg["crop_pct"], model.pretrained_cfg["mean"]) == (0.5, (0.5, 0.5, 0.5))
    assert model.norm1.weight.equal(filled_b0()["norm1.weight"])


def test_our_own_checkpoint_loads_through_timm_with_its_preprocessing(tmp_path):
    model = timm.create_model("van_b0", num_classes=2)
    Checkpoint(
        task="classify", model="van_b0", labels=("cat", "dog"), state=model.state_dict(),
        preprocess=Preprocess(size_px=96, mean=(0.4, 0.4, 0.4)), training={"step": torch.ones(1)},
        model_options={"norm_eps": 1e-4},
    ).save(tmp_path / "best.safetensors")  # fmt: skip
    loaded = create(tmp_path / "best.safetensors")
    assert loaded.head.weight.equal(model.head.weight)
    assert (loaded.pretrained_cfg["input_size"], loaded.pretrained_cfg["pool_size"]) == ((3, 96, 96), (3, 3))
    assert (loaded.pretrained_cfg["mean"], loaded.norm4.eps) == ((0.4, 0.4, 0.4), 1e-4)


def test_a_network_of_the_users_own_sizes_loads(tmp_path):
    options = {"dims": (4, 6, 8, 10), "depths": (1, 1, 1, 1), "kernel_size": 11, "num_classes": 3}
    model = timm.create_model("van_b0", **options)
    torch.save(model.state_dict(), tmp_path / "mine.pth")
    assert create(tmp_path / "mine.pth", **options).norm4.weight.equal(model.norm4.weight)


def test_input_channels_come_from_the_file_and_may_be_adapted(tmp_path, files):
    torch.save(timm.create_model("van_b0", in_chans=4, num_classes=2).state_dict(), tmp_path / "four.pth")
    assert create(tmp_path / "four.pth").in_chans == 4
    stem = create(files["safetensors"], in_chans=1).patch_embed1.proj.weight
    torch.testing.assert_close(stem, filled_b0()["patch_embed1.proj.weight"].sum(1, keepdim=True))


def test_timms_own_folders_round_trip(tmp_path):
    model = timm.create_model("van_b0", num_classes=4, kernel_size=11)
    arguments = {"kernel_size": 11, "num_classes": 4}
    timm.models.save_for_hf(model, tmp_path, model_args=arguments, safe_serialization=True)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert all(ours.equal(theirs) for ours, theirs in zip(loaded.parameters(), model.parameters(), strict=True))


def test_a_given_state_dict_is_compared_too():
    tensors = filled_b0()
    model = timm.create_model("van_b0", pretrained=True, pretrained_cfg_overlay={"state_dict": tensors})
    assert model.head.weight.equal(tensors["head.weight"])
    del tensors["norm1.bias"]
    with pytest.raises(
        NamesMismatch, match=r"the given state_dict does not fit the model.\n  missing \(1\): norm1.bias"
    ):
        timm.create_model("van_b0", pretrained=True, pretrained_cfg_overlay={"state_dict": tensors})


def test_a_file_is_read_as_safely_through_timm_as_anywhere(tmp_path, files):
    torch.save({"state_dict": filled_b0(), "args": Marked(tmp_path / "ran")}, tmp_path / "hostile.pth")
    with pytest.raises(UnsafePickle, match=r"holds posix.mkdir"):
        create(tmp_path / "hostile.pth")
    assert not (tmp_path / "ran").exists()
    content = files["safetensors"].read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[:5000])
    with pytest.raises(TruncatedFile):
        create(tmp_path / "cut.safetensors")
    digits = hashlib.sha256(content).hexdigest()[:8]
    (tmp_path / f"van-{digits}.safetensors").write_bytes(content)
    assert create(tmp_path / f"van-{digits}.safetensors").num_classes == 1000
    (tmp_path / "van-01234567.safetensors").write_bytes(content)
    with pytest.raises(HashMismatch, match="starts with 01234567"):
        create(tmp_path / "van-01234567.safetensors")
    with pytest.raises(CheckpointError, match="no such file"):
        create(tmp_path / "nowhere.pth")


@pytest.mark.parametrize("name", ["van_b4", "van_b5", "van_b6"])
def test_a_size_without_weights_on_the_hub_says_where_they_are(name):
    with pytest.raises(HubError, match=f"{name} has no weights on the hub. Public ones: mmpretrain: .*dict\\(file="):
        timm.create_model(name, pretrained=True)


def test_a_larger_size_takes_a_file(tmp_path):
    shapes = {name: tuple(t.shape) for name, t in timm.create_model("van_b1", device="meta").state_dict().items()}
    torch.save(filled(shapes), tmp_path / "b1.pth")
    model = create(tmp_path / "b1.pth", "van_b1").double()
    with torch.no_grad():
        assert distance_from_recorded("van_b1", model(picture())) < 1e-6


def test_a_hub_that_is_down_is_told_as_such(waiting_for_a_hub_that_is_down):
    outcome = waiting_for_a_hub_that_is_down.result()["down, not cached"]
    assert outcome["error"] == "HubError"
    assert "(Visual-Attention-Network/VAN-Small-original/van_small_811.pth.tar): http://127.0.0.1" in outcome["message"]
    assert "does not answer, and the file is not in the local cache" in outcome["message"]
