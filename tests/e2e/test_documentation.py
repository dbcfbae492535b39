"""Every command and every script in the README and in docs/ runs, in the order in which it stands there.

Training is cut to one epoch on small pictures, measuring to one round; names such as ``van_b0`` that mean a download
meet a hub on this machine, and where networks are compared small ones stand for them. Nothing else about a command is
changed.
"""

import contextlib
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from explain.small import write_peers
from models.local_hub import LocalHub
from serve.running import running
from van.cli.main import VERBS, main
from van.cli.train import run as _train  # noqa: F401  imported here so that the first command is not slow
from van.data.scene_files import write_digit_scenes
from van.models.segmenters import create_segmenter

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
LONG = ("docs/detection.md", "docs/explain.md", "docs/export.md", "docs/segmentation.md", "docs/speed.md")
"""Their commands take from a quarter of a minute to three; the README has the most used of them."""
QUICK = {
    "digits": ["--epochs", "1", "--batch-size", "256"],
    "finetune": ["--epochs", "1", "--batch-size", "8", "--size-px", "32"],
    "imagenet1k": ["--epochs", "1", "--batch-size", "8", "--size-px", "32", "--workers", "0"],
}
SMALL = ["--epochs", "1", "--batch-size", "2", "--short-px", "64", "--long-px", "96"]
"""For recipes that look at whole pictures."""
SMALL_CROPS = [*SMALL, "--crop-px", "64"]
LARGE_RUN = [*SMALL, "--workers", "0", "--precision", "fp32"]
FEW_SCENES = ["--from", "scratch", "--train-scenes", "4", "--val-scenes", "2"]
QUICK |= {f"scenes-{task}": [*SMALL, *FEW_SCENES] for task in ("detect", "instances", "segment", "panoptic")}
QUICK |= {"detect": SMALL, "instances": SMALL, "segment": SMALL_CROPS, "panoptic": SMALL_CROPS}
QUICK |= {name: [*LARGE_RUN, "--length", "own"] for name in ("coco-retinanet", "coco-mask-rcnn")}
QUICK |= {name: [*LARGE_RUN, "--updates", "1", "--crop-px", "64"] for name in ("ade20k-fpn", "ade20k-upernet")}
MAKE_TARGETS = {"demo", "test", "check", "setup", "format", "lock"}


def commands(page: str) -> list[str]:
    """Lines of the page's sh blocks, and commands in backticks in its tables."""
    text = (ROOT / page).read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```", text, flags=re.S | re.M)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    rows = [row for row in text.splitlines() if row.startswith("|")]
    return [line for line in lines if line] + [
        c for row in rows for c in re.findall(r"`(van models|van [a-z]+ [^`]+)`", row)
    ]


def scripts(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), flags=re.S | re.M)


@pytest.fixture(scope="module")
def official_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "van_tiny_754.pth.tar"
    torch.save({"state_dict": timm.create_model("van_b0").state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def small_networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small networks of three families, with random weights."""
    folder = tmp_path_factory.mktemp("small")
    write_peers(folder)
    return folder


@pytest.fixture
def workplace(tmp_path: Path, official_file: Path, small_networks: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the pictures that the pages speak of."""
    for name, colour in (("daisy", "gold"), ("rose", "crimson"), ("tulip", "navy")):
        for number in range(6):
            path = tmp_path / "flowers" / name / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40 + number, 36), colour).save(path)
    for part in ("train", "val"):
        for number, synset in enumerate(("n01440764", "n01443537")):
            folder = tmp_path / "imagenet" / part / synset
            folder.mkdir(parents=True)
            for picture in range(5):
                Image.new("RGB", (40, 40), (90 * number, 50 * picture, 70)).save(folder / f"{picture}.JPEG")
    for name in ("cat", "tree", "street"):
        Image.new("RGB", (300, 240), "grey").save(tmp_path / f"{name}.jpg")
    shutil.copy(official_file, tmp_path)
    write_marked_sets(tmp_path)
    shutil.copytree(small_networks, tmp_path / "small")
    segmenter = create_segmenter("van_b0", head="semantic_fpn", num_classes=150)
    torch.save({"state_dict": segmenter.state_dict()}, tmp_path / "van-b0-in1kpre_fpn.pth")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_marked_sets(folder: Path) -> None:
    """Scenes in the layouts that the pages speak of."""
    write_digit_scenes(folder / "made", train=4, validation=2, size_px=64)
    for name in ("apples", "coco", "coco-panoptic"):
        shutil.copytree(folder / "made" / "coco", folder / name)
    for name in ("ade20k", "streets"):
        shutil.copytree(folder / "made" / "ade", folder / name)


@pytest.fixture(scope="module")
def hub_environment(official_file: Path, tmp_path_factory: pytest.TempPathFactory):
    """Environment variables under which the hub is on this machine."""
    files = {"van_tiny_754.pth.tar": official_file.read_bytes()}
    with LocalHub({"Visual-Attention-Network/VAN-Tiny-original": files}) as hub:
        home = str(tmp_path_factory.mktemp("hub"))
        yield {"HF_ENDPOINT": hub.url, "HF_HOME": home, "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1"}


def quick(words: list[str]) -> list[str]:
    """The command with its training cut short, and with as many processes as this machine can carry."""
    if words[:3] == ["van", "bench", "models"]:
        few = ["--models", "van_b0", "--ways", "van", "reference", "--batch-size", "2", "--rounds", "1"]
        return [*words, *few, *(["--size-px", "96"] if "--grow" in words else [])]
    if words[:3] == ["van", "bench", "sessions"]:
        return [*words, "--rounds", "2", "--size-px", "64", "--model", "van_b0", "--sessions", "pytorch", "onnxruntime"]
    if words[:2] == ["van", "bench"]:
        return [*words, "--rounds", "1"]
    if words[:2] == ["van", "explain"]:
        return quick_explain(words)
    if words[:3] == ["van", "data", "digit-scenes"]:
        return [*words, "--train", "60", "--val", "10"]
    words = ["2" if before == "--nproc-per-node" else word for before, word in zip(["", *words], words, strict=False)]
    if "train" not in words or "--resume" in words:
        return words
    recipe = words[words.index("train") + 1]
    trains_from_nothing = "torchrun" in words if recipe == "finetune" else recipe not in ("digits", "imagenet1k")
    start = ["--from", "scratch"] if trains_from_nothing and "--from" not in words else []
    return [*words, *QUICK[recipe], "--model", "van_b0", *start]


def quick_explain(words: list[str]) -> list[str]:
    """The same of fewer pictures; where networks are compared, of small ones with their names."""
    if "--fields" in words:
        return [*(word for word in words if word not in ("convnext_tiny", "swin_tiny")), "--size-px", "64"]
    if "--score" in words:
        return [*words, "--limit", "2", "--method", "grad-cam"]
    names = {"van_b2", "swin_tiny", "convnext_tiny"} if "--compare" in words else set()
    return [f"small/{word}.safetensors" if word in names else word for word in words]


def run(command: str, environment: dict[str, str]) -> None:
    words = quick(shlex.split(command))
    if words[0] == "make":
        assert words[1] in MAKE_TARGETS
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), flags=re.M)
        return
    if words[:2] == ["van", "serve"]:
        with running(*words[2:], "--watch-s", "0") as server:
            assert server.client.get("/v2/health/ready").status_code == 200
            assert server.client.get("/").status_code == 200
        return
    downloads = words[:3] in (["van", "predict", "van_b0"], ["van", "explain", "van_b0"]) or (
        "finetune" in words[:3] and "--from" not in words
    )
    if words[0] == "van" and not (downloads and "--resume" not in words):
        assert main(words[1:]) == 0, command
        return
    replaced = {
        "python": [sys.executable],
        "van": [sys.executable, "-m", "van"],
        "torchrun": [sys.executable, "-m", "torch.distributed.run"],
    }
    words = [str(ROOT / word) if word.startswith("examples/") else word for word in words]
    ended = subprocess.run(
        [*replaced[words[0]], *words[1:]],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert ended.returncode == 0, f"{command}\n{ended.stderr[-3000:]}"


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=pytest.mark.slow) if page in LONG else page for page in PAGES]
)
def test_every_command_of_a_page_runs_in_its_order(
    page: str, workplace: Path, hub_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("van.bench.cases.RESOLUTIONS_PX", (96, 128))  # float64 at 1024 px would take minutes
    monkeypatch.setattr("van.bench.operators.STAGES", ((64, 14, 8.0), (96, 7, 4.0)))
    monkeypatch.setattr("van.bench.cases.KERNEL_SIZES", (7, 21))
    for command in commands(page):
        run(command, hub_environment)


@pytest.mark.parametrize("page", [page for page in PAGES if scripts(page)])
def test_every_script_of_a_page_runs(page: str, workplace: Path, official_file: Path, monkeypatch: pytest.MonkeyPatch):
    """A model asked for with ``pretrained=True`` or by a run's name is given the weights made here."""
    assert main(["convert", str(official_file), "runs/flowers/best.safetensors"]) == 0
    for recipe, data in (("detect", "apples"), ("segment", "streets")):
        words = ["van", "train", recipe, "--data", data, "--out", f"runs/{data}"]
        assert main(quick(words)[1:]) == 0
    for script in scripts(page):
        local = script.replace(
            "pretrained=True", f"pretrained=True, pretrained_cfg_overlay=dict(file={str(official_file)!r})"
        )
        with contextlib.redirect_stdout(None):
            exec(compile(local, page, "exec"), {})


@pytest.mark.parametrize("page", PAGES)
def test_every_picture_of_a_page_is_there(page: str):
    text = (ROOT / page).read_text()
    names = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert all((ROOT / page).parent.joinpath(name).is_file() for name in names)


def test_the_gallery_makes_every_figure_of_its_page():
    made = runpy.run_path(str(ROOT / "examples" / "gallery.py"))["FIGURES"]
    page = (ROOT / "docs" / "explain.md").read_text()
    assert set(re.findall(r"\(pictures/([^)]+)\)", page)) == set(made.values())
    drawn = {name.partition("/")[0] for name in made if "/" in name}
    assert drawn <= set(re.findall(r"--out (\S+)", page))


def test_the_readme_shows_an_example_of_every_verb():
    shown = {command.split()[1] for command in commands("README.md") if command.startswith("van ")}
    assert shown == set(VERBS)


def test_a_page_with_a_wrong_command_would_fail(workplace: Path, hub_environment: dict[str, str]):
    """The negative control: a verb that does not exist, and one that ends with status 1."""
    for command in ("van explode cat.jpg", "van predict nosuch.safetensors cat.jpg"):
        with pytest.raises(AssertionError, match=command):
            run(command, hub_environment)
