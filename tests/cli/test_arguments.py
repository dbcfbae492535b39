"""What every verb has in common: help with examples, and one clear line for bad input."""

import re
import shlex

import pytest

from van.cli.main import VERBS
from van.recipes import RECIPES

HELPFUL = (
    [[verb] for verb in VERBS]
    + [["train", recipe] for recipe in RECIPES]
    + [
        ["data", "digits"],
        ["data", "digit-scenes"],
        ["data", "check"],
        ["bench", "ops"],
        ["bench", "models"],
        ["bench", "sessions"],
    ]
)


@pytest.mark.parametrize("verb", HELPFUL, ids=" ".join)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_comes_with_examples_and_status_0(van, verb, flag):
    ran = van(*verb, flag)
    assert (ran.status, ran.err) == (0, "")
    examples = re.findall(rf"^  (?:\S.*[ |])?(van {' '.join(verb)}(?: .*)?)$", ran.out, flags=re.M)
    examples += re.findall(rf"-m (van {' '.join(verb)} .*)$", ran.out, flags=re.M)
    assert examples


@pytest.mark.parametrize("verb", HELPFUL, ids=" ".join)
def test_examples_name_no_flag_that_the_help_does_not(van, verb):
    text = van(*verb, "--help").out
    examples = [line for line in text.splitlines() if re.match(r"  (torchrun|van|find) ", line)]
    for example in examples:
        after = example.split("van ", 1)[1] if "-m van" not in example else example.split("-m van ", 1)[1]
        flags = {word for word in shlex.split(after) if word.startswith("--")}
        helped = van(*shlex.split(after)[: 2 if after.startswith(("train", "data", "bench")) else 1], "--help").out
        assert all(re.search(rf"{flag}\b", helped) for flag in flags), example


BAD = {
    "train": (2, "usage: van train RECIPE"),
    "train nonsense --out x": (2, "there is no recipe 'nonsense'; known: digits, scenes-detect, scenes-instances"),
    "train digits": (2, "--out"),
    "train digits --out x --epoch 3": (2, "--epochs"),
    "train digits --out x --epochs three": (2, "'three'"),
    "train digits --out x --epochs 0": (2, "--epochs is 0; wanted at least 1"),
    "train digits --out x --lr nan": (2, "--lr is nan; wanted more than 0"),
    "train digits --out x --precision fp8": (2, "fp8"),
    "train digits --out x --scale 0.9 0.1": (2, "--scale is (0.9, 0.1); wanted two shares"),
    "train digits --out x --set speed=9": (2, "--set speed: wanted NAME=VALUE with NAME one of milestones"),
    "train digits --out x --set": (2, "--set : wanted NAME=VALUE"),
    "train digits --out x --set=save_every=often": (2, "--set save_every=often: wanted a whole number"),
    "train digits --out x --set milestones=one,two": (2, "--set milestones=one,two: wanted whole numbers such as 8,11"),
    "train digits --out x --schedule step --set milestones=99": (2, "--milestones is (99,); wanted epochs of the run"),
    "train digits --out x --schedule linear": (2, "linear"),
    "train digits --out x --model van_b9": (2, "'van_b9' is neither a file nor a model; known: van_b0"),
    "train digits --out x --rand-augment loud": (2, "--rand-augment is 'loud'"),
    "train finetune --out x": (2, "--data"),
    "train finetune --data nowhere --out x": (1, "nowhere: no such folder"),
    "train imagenet1k --data nowhere --out x --model resnet18": (2, "--drop-path-rate: the paper has none"),
    "train detect --out x": (2, "--data"),
    "train detect --data nowhere --out x": (1, "nowhere: no such folder; give the folder of a data set"),
    "train detect --data . --out x": (1, "hold no data set with boxes for train; wanted annotations/instances_train"),
    "train detect --data . --out x --head ssd": (2, "ssd"),
    "train detect --data . --out x --scale 2 1": (2, "--scale is (2.0, 1.0); wanted two factors"),
    "train detect --data . --out x --short-px 900 --long-px 800": (2, "--short-px is 900, --long-px 800"),
    "train detect --data . --out x --distort 2": (2, "--distort is 2.0; wanted a share"),
    "train instances --data . --out x": (1, "hold no data set with masks for train"),
    "train segment --data . --out x": (1, "hold no data set with map"),
    "train segment --data . --out x --crop-px -1": (2, "--crop-px is -1; wanted at least 0"),
    "train segment --data . --out x --set largest_class=2": (2, "--largest-class is 2.0; wanted a share"),
    "train panoptic --data . --out x": (1, "hold no data set with panoptic for train"),
    "train coco-retinanet --data . --out x --length 2x": (2, "2x"),
    "train coco-retinanet --data . --out x --epochs 3": (2, "--epochs is 3 and --length 1x has 12"),
    "train coco-mask-rcnn --data . --out x --length own": (1, "hold no data set with masks for train"),
    "train ade20k-fpn --data . --out x --updates -5": (2, "--updates is -5; wanted at least 0"),
    "train ade20k-upernet --data . --out x": (1, "hold no data set with map"),
    "train scenes-detect": (2, "--out"),
    "train scenes-detect --out x --train-scenes 0": (2, "--train-scenes is 0; wanted at least 1"),
    "eval": (2, "CHECKPOINT"),
    "eval nowhere.safetensors": (2, "--data"),
    "eval nowhere.safetensors --data x": (1, "nowhere.safetensors: no such file"),
    "eval van_b9 --data x": (2, "'van_b9' is neither a file nor a model"),
    "eval x --data y --batch-size 0": (2, "--batch-size is 0"),
    "eval x --data y --workers -1": (2, "--workers -1"),
    "eval x --data y --confusion table.pdf": (2, "--confusion is table.pdf; wanted a name ending in .png"),
    "predict": (2, "MODEL"),
    "predict van_b0": (2, "no pictures given"),
    "predict van_b0 a.png --top 0": (2, "--top is 0"),
    "predict van_b0 a.png --batch-size 0": (2, "--batch-size is 0"),
    "predict van_b0 a.png --min-score 1.5": (2, "--min-score is 1.5; wanted 0 to 1"),
    "predict van_b0 a.png --min-score nan": (2, "--min-score is nan; wanted 0 to 1"),
    "predict van_b0 a.png --coco found.txt": (2, "--coco is found.txt; wanted a file name ending in .json"),
    "predict van_b0 a.png --tile-px wide": (2, "'wide'"),
    "predict van_b0 a.png --json --csv": (2, "--json and --csv exclude each other"),
    "predict van_b9 a.png": (2, "'van_b9' is neither a file nor a model"),
    "predict van_b0 *.gif": (2, "*.gif matches no files"),
    "predict van_b0 .": (2, ". holds no pictures"),
    "explain": (2, "--out"),
    "explain --out x": (2, "no model given; wanted van explain MODEL PICTURES... --out FOLDER"),
    "explain van_b0 --out x": (2, "no pictures given; name files, folders or patterns after the model"),
    "explain van_b0 a.png --out x --top 0": (2, "--top is 0; wanted at least 1"),
    "explain van_b0 a.png --out x --compare --lka": (2, "--compare and --lka exclude each other; choose one"),
    "explain van_b0 a.png --out x --score": (2, "--score and --data belong together"),
    "explain van_b0 a.png --out x --fresh": (2, "--fresh is for --fields, which is not given"),
    "explain van_b0 a.png --out x --channels mean": (2, "--channels is for --lka, which is not given"),
    "explain van_b0 a.png --out x --box 1 2 3": (2, "--box"),
    "explain van_b9 a.png --out x": (2, "'van_b9' is neither a file nor a model"),
    "explain van_b0 *.gif --out x": (2, "*.gif matches no files"),
    "report": (2, "RUN"),
    "report nowhere": (1, "nowhere/settings.json cannot be read"),
    "report x --out page.pdf": (2, "--out is page.pdf; wanted a name ending in .html"),
    "report x --limit -1": (2, "--limit is -1; wanted at least 0"),
    "report x --mistakes -1": (2, "--mistakes is -1"),
    "report x --batch-size 0": (2, "--batch-size is 0"),
    "export": (2, "CHECKPOINT"),
    "export x --out a.xml": (2, "wanted a name ending in .onnx"),
    "export x --out a.onnx --tolerance 0": (2, "--tolerance is 0.0"),
    "export x --out a.onnx --int8": (2, "--int8 and --calibrate FOLDER belong together"),
    "export nowhere.safetensors --out a.onnx": (1, "nowhere.safetensors"),
    "export x --out a.xml --format openvino --int8 --calibrate x --max-loss 2": (2, "--max-loss is 2.0; wanted 0 to 1"),
    "serve": (2, "no model given; name a checkpoint"),
    "serve nowhere.safetensors": (1, "nowhere.safetensors: no such file"),
    "serve van_b0 --host 0.0.0.0": (2, "--host 0.0.0.0 can be reached by others; give --api-key-file or VAN_API_KEY"),
    "serve van_b0 --workers 0": (2, "--workers is 0; wanted at least 1"),
    "serve van_b0 --port 70000": (2, "--port is 70000; wanted 0 to 65535"),
    "serve van_b0 --max-queue 0": (2, "--max-queue is 0; wanted"),
    "serve van_b0 --timeout-s nan": (2, "--timeout-s is nan; wanted"),
    "serve van_b0 --allow-origin example.org": (2, "--allow-origin is 'example.org'"),
    "serve van_b0 van_b0": (2, "would both be served as 'van_b0'"),
    "serve van_b0 --api-key-file nowhere": (2, "the key in nowhere cannot be read"),
    "models --verbose": (2, "--verbose"),
    "models extra": (2, "extra"),
    "convert": (2, "IN"),
    "convert a.pth": (2, "OUT"),
    "convert a.pth b.pth": (2, "OUT is b.pth; wanted a name ending in .safetensors"),
    "convert a.pth b.safetensors": (1, "a.pth: no such file"),
    "convert a.pth b.safetensors --num-classes -1": (2, "--num-classes is -1"),
    "data": (2, "usage: van data JOB"),
    "data letters --out x": (2, "there is no job 'letters'; known: digits"),
    "data digits": (2, "--out"),
    "data digit-scenes": (2, "--out"),
    "data digit-scenes --out x --val 0": (2, "--val is 0; wanted at least 1"),
    "data digit-scenes --out x --most-digits 0": (2, "--most-digits is 0; wanted at least 1"),
    "data digit-scenes --out x --size-px 8": (2, "--size-px is 8; wanted at least 32"),
    "data check": (2, "PATH"),
    "data check nowhere": (1, "nowhere: no such folder; give the folder of a data set"),
    "data check nowhere --sheet sheet.jpg": (2, "--sheet is sheet.jpg; wanted a name ending in .png"),
    "bench nets": (2, "there is no subject 'nets'"),
    "bench models --models van_b9": (2, "van_b9"),
    "bench models --ways tensorrt": (2, "tensorrt"),
    "bench models --size-px 8": (2, "--size-px"),
    "bench models --rounds 0": (2, "--rounds"),
    "bench ops --rounds 0": (2, "--rounds is 0; wanted at least 1"),
    "bench ops --rounds some": (2, "'some'"),
    "design --kernel 0": (2, "--kernel is 0; wanted 1 to 10,000"),
    "design --kernel 2000000000": (2, "--kernel is 2000000000"),
    "design --channels -3": (2, "--channels is -3"),
    "design --size 0": (2, "--size is 0"),
    "design --kernel five": (2, "'five'"),
    "design --plot costs.jpg": (2, "--plot is costs.jpg; wanted a name ending in .png"),
}


@pytest.mark.parametrize("line", BAD)
def test_bad_input_is_told_in_one_place_with_its_status_and_leaves_nothing(van, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, message = BAD[line]
    ran = van(*line.split())
    assert ran.status == status
    told = ran.out if message.startswith("usage") else ran.err
    assert message in told
    if told.startswith("van: "):
        assert told.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_every_verb_is_tried_with_bad_input():
    assert {line.split()[0] for line in BAD} == set(VERBS)
