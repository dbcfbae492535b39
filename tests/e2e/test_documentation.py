"""Every command and every Python example in the README and in docs/ runs, in the order of its page.

Training is cut to one epoch on small images, benchmarks to one round; model names such as ``van_b0`` that mean a
download use a local hub, and where models are compared small ones are used. Nothing else about a command is changed.
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

from explain.small_models import write_peers
from serving.server import running_server
from van.cli.main import VERBS, main
from van.cli.train import run as _train  # noqa: F401  imported here so that the first command is not slow
from van.datasets.scenes import write_digit_scenes
from van.heads import create_model
from weights.local_hub import LocalHub

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))]
LONG = {f"docs/{name}.md" for name in (
    "explainability", "export", "instance-segmentation", "object-detection", "panoptic-segmentation", "performance",
    "semantic-segmentation",
)}  # fmt: skip
"""Their commands take from a quarter of a minute to three; the README has the most used of them."""
QUICK = {
    "digits": ["--epochs", "1", "--batch-size", "256"],
    "classify": ["--epochs", "1", "--batch-size", "8", "--image-size", "32"],
    "imagenet1k": ["--epochs", "1", "--batch-size", "8", "--image-size", "32", "--workers", "0"],
}
SMALL = ["--epochs", "1", "--batch-size", "2", "--min-size", "64", "--max-size", "96"]
"""For recipes with images of variable size."""
SMALL_CROPS = [*SMALL, "--crop-size", "64"]
LARGE_RUN = [*SMALL, "--workers", "0", "--precision", "fp32"]
FEW_SCENES = ["--init-from", "scratch", "--train-scenes", "4", "--val-scenes", "2"]
QUICK |= {f"scenes-{task}": [*SMALL, *FEW_SCENES] for task in ("detect", "instances", "segment", "panoptic")}
QUICK |= {"detect": SMALL, "instances": SMALL, "segment": SMALL_CROPS, "panoptic": SMALL_CROPS}
QUICK |= {name: [*LARGE_RUN, "--length", "own"] for name in ("coco-retinanet", "coco-mask-rcnn")}
QUICK |= {name: [*LARGE_RUN, "--updates", "1", "--crop-size", "64"] for name in ("ade20k-fpn", "ade20k-upernet")}
RUNS = {
    "apples": ("detect", "apples"),
    "masks": ("instances", "apples"),
    "streets": ("segment", "streets"),
    "panoptic": ("panoptic", "coco-panoptic"),
}
"""Recipe and dataset of the runs that Python examples use."""
MAKE_TARGETS = {"demo", "test", "check", "docs", "setup", "format", "lock"}


def commands(page: str) -> list[str]:
    """Lines of the page's sh blocks, and table cells that are one command in backticks."""
    text = (ROOT / page).read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```", text, flags=re.S | re.M)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    rows = [row for row in text.splitlines() if row.startswith("|")]
    found = [line for line in lines if line] + [
        c for row in rows for c in re.findall(r"\| `(van models|van [a-z]+ [^`]+)` \|", row)
    ]
    return list(dict.fromkeys(found))  # a command that a page repeats runs once


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
def workspace(tmp_path: Path, official_file: Path, small_networks: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the images and datasets that the pages use."""
    for name, color in (("daisy", "gold"), ("rose", "crimson"), ("tulip", "navy")):
        for number in range(6):
            path = tmp_path / "flowers" / name / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40 + number, 36), color).save(path)
    for part in ("train", "val"):
        for number, synset in enumerate(("n01440764", "n01443537")):
            folder = tmp_path / "imagenet" / part / synset
            folder.mkdir(parents=True)
            for image in range(5):
                Image.new("RGB", (40, 40), (90 * number, 50 * image, 70)).save(folder / f"{image}.JPEG")
    for name in ("cat", "tree", "street"):
        Image.new("RGB", (300, 240), "gray").save(tmp_path / f"{name}.jpg")
    shutil.copy(official_file, tmp_path)
    write_annotated_datasets(tmp_path)
    shutil.copytree(small_networks, tmp_path / "small")
    segmenter = create_model("van_b0", num_classes=150, options={"head": "semantic_fpn"})
    torch.save({"state_dict": segmenter.state_dict()}, tmp_path / "van-b0-in1kpre_fpn.pth")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_annotated_datasets(folder: Path) -> None:
    """Write scenes in the dataset formats that the pages use."""
    write_digit_scenes(folder / "scenes-source", train=4, validation=2, image_size=64)
    for name in ("apples", "coco", "coco-panoptic"):
        shutil.copytree(folder / "scenes-source" / "coco", folder / name)
    for name in ("ade20k", "streets"):
        shutil.copytree(folder / "scenes-source" / "ade", folder / name)


@pytest.fixture(scope="module")
def hub_environment(official_file: Path, tmp_path_factory: pytest.TempPathFactory):
    """Environment variables under which the hub is on this machine."""
    files = {"van_tiny_754.pth.tar": official_file.read_bytes()}
    with LocalHub({"Visual-Attention-Network/VAN-Tiny-original": files}) as hub:
        home = str(tmp_path_factory.mktemp("hub"))
        yield {"HF_ENDPOINT": hub.url, "HF_HOME": home, "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1"}


def quick(words: list[str]) -> list[str]:
    """Return the command with fewer training steps, and at most two processes."""
    if words[:3] == ["van", "bench", "models"]:
        few = ["--models", "van_b0", "--backends", "van", "reference", "--batch-size", "2", "--rounds", "1"]
        return [*words, *few, *(["--image-size", "96"] if "--sweep" in words else [])]
    if words[:3] == ["van", "bench", "sessions"]:
        return [
            *words,
            "--rounds",
            "2",
            "--image-size",
            "64",
            "--model",
            "van_b0",
            "--sessions",
            "pytorch",
            "onnxruntime",
        ]
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
    starts_from_scratch = "torchrun" in words if recipe == "classify" else recipe not in ("digits", "imagenet1k")
    start = ["--init-from", "scratch"] if starts_from_scratch and "--init-from" not in words else []
    return [*words, *QUICK[recipe], "--model", "van_b0", *start]


def quick_explain(words: list[str]) -> list[str]:
    """Return the command with fewer images; where models are compared, with small ones."""
    if "--fields" in words:
        return [*(word for word in words if word not in ("convnext_tiny", "swin_tiny")), "--image-size", "64"]
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
        with running_server(*words[2:], "--reload-interval-s", "0") as server:
            assert server.client.get("/v2/health/ready").status_code == 200
            assert server.client.get("/").status_code == 200
        return
    downloads = words[:3] in (["van", "predict", "van_b0"], ["van", "explain", "van_b0"]) or (
        "classify" in words[:3] and "--init-from" not in words
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
    page: str, workspace: Path, hub_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("van.bench.cases.RESOLUTIONS_PX", (96, 128))  # float64 at 1024 px would take minutes
    monkeypatch.setattr("van.bench.operators.STAGES", ((64, 14, 8.0), (96, 7, 4.0)))
    monkeypatch.setattr("van.bench.cases.KERNEL_SIZES", (7, 21))
    for command in commands(page):
        run(command, hub_environment)


@pytest.mark.parametrize("page", [page for page in PAGES if scripts(page)])
def test_every_script_of_a_page_runs(page: str, workspace: Path, official_file: Path, monkeypatch: pytest.MonkeyPatch):
    """``pretrained=True`` and the names of runs get weights that are made here."""
    assert main(["convert", str(official_file), "runs/flowers/best.safetensors"]) == 0
    for name, (recipe, data) in RUNS.items():
        if f"runs/{name}/best" in "".join(scripts(page)):
            words = ["van", "train", recipe, "--data", data, "--out", f"runs/{name}"]
            assert main(quick(words)[1:]) == 0
    for script in scripts(page):
        local = script.replace(
            "pretrained=True", f"pretrained=True, pretrained_cfg_overlay=dict(file={str(official_file)!r})"
        )
        if "from transformers" in local:  # in this process tests/datasets would stand for the package datasets
            subprocess.run([sys.executable, "-c", local], check=True, capture_output=True, timeout=250)
            continue
        with contextlib.redirect_stdout(None):
            exec(compile(local, page, "exec"), {})


def test_the_gallery_makes_every_figure_of_its_page():
    made = runpy.run_path(str(ROOT / "examples" / "gallery.py"))["IMAGES"]
    page = (ROOT / "docs" / "explainability.md").read_text()
    assert set(re.findall(r"\(images/([^)]+)\)", page)) == set(made.values())
    drawn = {name.partition("/")[0] for name in made if "/" in name}
    assert drawn <= set(re.findall(r"--out (\S+)", page))


def test_the_readme_shows_an_example_of_every_verb():
    shown = {command.split()[1] for command in commands("README.md") if command.startswith("van ")}
    assert shown == set(VERBS)


def test_a_page_with_a_wrong_command_would_fail(workspace: Path, hub_environment: dict[str, str]):
    """The negative control: a verb that does not exist, and one that ends with status 1."""
    for command in ("van explode cat.jpg", "van predict nosuch.safetensors cat.jpg"):
        with pytest.raises(AssertionError, match=command):
            run(command, hub_environment)
