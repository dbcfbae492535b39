"""Wrong usage of every verb: one line with the option, the expected and the given value, status 2, nothing written."""

from van.cli.verbs import VERBS

WRONG = {
    "train": (2, "usage: van train RECIPE"),
    "train nonsense --out x": (2, '"nonsense"', "digits, scenes-detect, scenes-instances", "van train --help"),
    "train digits": (2, "--out PATH", "none"),
    "train digits --out x --epoch 3": (2, "--epoch ", "did you mean --epochs?"),
    "train digits --out x --epochs three": (2, "--epochs: expected an integer, got 'three'"),
    "train digits --out x --epochs": (2, "--epochs: expected one value (INT), got none"),
    "train digits --out x --epochs --lr 1": (2, "--epochs: expected one value (INT), got none"),
    "train digits --out x --epochs 0": (2, "--epochs", "at least 1", " 0"),
    "train digits --out x --lr nan": (2, "--lr", "nan"),
    "train digits --out x --precision fp8": (2, "--precision: expected one of fp32, bf16, fp16, got 'fp8'"),
    "train digits --out x --resume=yes": (2, "--resume: expected no value, got 'yes'"),
    "train digits --out x --no-resume": (2, "--no-resume", "--resume"),
    "train digits --out x y": (2, "'y'", "options only"),
    "train digits --out x --scale 0.9": (2, "--scale: expected 2 values (FLOAT FLOAT), got 0.9"),
    "train digits --out x --scale 0.9 0.1": (2, "--scale", "0.9", "0.1"),
    "train digits --out x --save-every=often": (2, "--save-every: expected an integer, got 'often'"),
    "train digits --out x --poly-power high": (2, "--poly-power: expected a number, got 'high'"),
    "train digits --out x --milestones one two": (2, "--milestones: expected an integer, got 'one'"),
    "train digits --out x --schedule step --milestones 99": (2, "--milestones", "99"),
    "train detect --data . --out x --random-erasing 0.2": (2, "--random-erasing", "van train detect"),
    "train digits --out x --schedule linear": (2, "cosine, poly, step", "'linear'"),
    "train digits --out x --model van_b9": (2, "van_b9", "van_b0"),
    "train digits --out x --rand-augment loud": (2, "--rand-augment", "loud"),
    "train classify --out x": (2, "--data PATH", "none"),
    "train finetune --out x": (2, "--data PATH", "none", "van train classify --help"),
    "train classify --data nowhere --out x": (1, "nowhere"),
    "train imagenet1k --data nowhere --out x --model resnet18": (2, "--drop-path-rate", "resnet18"),
    "train detect --out x": (2, "--data PATH"),
    "train detect --data nowhere --out x": (1, "nowhere"),
    "train detect --data . --out x": (1, "annotations/instances_train"),
    "train detect --data . --out x --head ssd": (2, "--head", "retinanet", "'ssd'"),
    "train detect --data . --out x --head upernet": (2, "--head: expected one of ", "fcos", "'upernet'"),
    "train segment --data . --out x --head fcos": (2, "--head: expected one of ", "upernet", "'fcos'"),
    "train detect --data . --out x --scale 2 1": (2, "--scale", "2.0", "1.0"),
    "train detect --data . --out x --min-size 900 --max-size 800": (2, "--min-size", "900", "--max-size", "800"),
    "train detect --data . --out x --photometric-distort 2": (2, "--photometric-distort", "2.0"),
    "train instances --data . --out x": (1, "van: .: ", "masks", "train", "COCO", "YOLO"),
    "train segment --data . --out x": (1, "van: .: ", "semantic", "train", "ADE20K", "Cityscapes"),
    "train segment --data . --out x --crop-size -1": (2, "--crop-size", "at least 0", "-1"),
    "train segment --data . --out x --max-class-fraction 2": (2, "max-class-fraction", "2.0"),
    "train panoptic --data . --out x": (1, "van: .: ", "panoptic", "train", "COCO"),
    "train coco-retinanet --data . --out x --length 2x": (2, "1x, 3x, own", "'2x'"),
    "train coco-retinanet --data . --out x --epochs 3": (2, "--epochs", "3", "--length", "12"),
    "train coco-mask-rcnn --data . --out x --length own": (1, "masks", "train"),
    "train ade20k-fpn --data . --out x --updates -5": (2, "--updates", "at least 0", "-5"),
    "train ade20k-upernet --data . --out x": (1, "van: .: ", "semantic", "train", "ADE20K"),
    "train scenes-detect": (2, "--out PATH"),
    "train scenes-detect --out x --train-scenes 0": (2, "--train-scenes", "at least 1", " 0"),
    "eval": (2, "CHECKPOINT"),
    "eval nowhere.safetensors": (2, "--data PATH"),
    "eval nowhere.safetensors --data x": (1, "nowhere.safetensors"),
    "eval van_b9 --data x": (2, "'van_b9'", "van_b0"),
    "eval x --data y --batch-size 0": (2, "--batch-size: expected at least 1, got 0"),
    "eval x --data y --workers -1": (2, "--workers: expected at least 0, got -1"),
    "eval x --data y --confusion table.pdf": (2, "--confusion", ".png", "table.pdf"),
    "predict": (2, "MODEL"),
    "predict van_b0": (2, "IMAGES: expected ", "got none"),
    "predict van_b0 a.png --top 0": (2, "--top", "at least 1", "0"),
    "predict van_b0 a.png --batch-size 0": (2, "--batch-size", "0"),
    "predict van_b0 a.png --min-score 1.5": (2, "--min-score", "1.5"),
    "predict van_b0 a.png --min-score nan": (2, "--min-score", "nan"),
    "predict van_b0 a.png --coco found.txt": (2, "--coco", ".json", "found.txt"),
    "predict van_b0 a.png --tile-size wide": (2, "--tile-size: expected an integer, got 'wide'"),
    "predict van_b0 a.png --json --csv": (2, "--json", "--csv"),
    "predict van_b9 a.png": (2, "'van_b9'", "van_b0"),
    "predict van_b0 *.gif": (2, "van: *.gif: "),
    "predict van_b0 .": (2, "van: .: ", "images", ".jpg"),
    "explain": (2, "--out PATH"),
    "explain --out x": (2, "MODEL"),
    "explain van_b0 --out x": (2, "expected images", "got none"),
    "explain van_b0 a.png --out x --top 0": (2, "--top", "at least 1", "0"),
    "explain van_b0 a.png --out x --compare --lka": (2, "--compare", "--lka"),
    "explain van_b0 a.png --out x --faithfulness": (2, "--faithfulness", "--data"),
    "explain van_b0 a.png --out x --random-init": (2, "--random-init", "--receptive-fields"),
    "explain van_b0 a.png --out x --channels mean": (2, "--channels", "--lka"),
    "explain van_b0 a.png --out x --box 1 2 3": (2, "--box: expected 4 values", "1 2 3"),
    "explain van_b9 a.png --out x": (2, "'van_b9'", "van_b0"),
    "explain van_b0 *.gif --out x": (2, "van: *.gif: "),
    "report": (2, "RUN"),
    "report nowhere": (1, "nowhere/settings.json"),
    "report x --out page.pdf": (2, "--out", ".html", "page.pdf"),
    "report x --limit -1": (2, "--limit", "-1"),
    "report x --num-errors -1": (2, "--num-errors", "-1"),
    "report x --batch-size 0": (2, "--batch-size", "0"),
    "export": (2, "CHECKPOINT"),
    "export x --out a.xml": (2, "--out", ".onnx", "a.xml"),
    "export x --out a.onnx --tolerance 0": (2, "--tolerance", "0"),
    "export x --out a.onnx --int8": (2, "--int8", "--calibration-data"),
    "export nowhere.safetensors --out a.onnx": (1, "nowhere.safetensors"),
    "export x --out a.xml --format openvino --int8 --calibration-data x --max-accuracy-drop 2": (
        2,
        "--max-accuracy-drop",
        "2.0",
    ),
    "serve": (2, "MODEL"),
    "serve nowhere.safetensors": (1, "nowhere.safetensors"),
    "serve van_b0 --host 0.0.0.0": (2, "--host", "0.0.0.0", "--api-key-file", "VAN_API_KEY"),
    "serve van_b0 --workers 0": (2, "workers", "at least 1", "0"),
    "serve van_b0 --port 70000": (2, "port", "65535", "70000"),
    "serve van_b0 --max-queue 0": (2, "--max-queue", "0"),
    "serve van_b0 --timeout-s nan": (2, "--timeout-s", "nan"),
    "serve van_b0 --allow-origin example.org": (2, "--allow-origin", "example.org"),
    "serve van_b0 van_b0": (2, "'van_b0'", "NAME=FILE"),
    "serve van_b0 --api-key-file nowhere": (2, "nowhere", "key"),
    "models --verbose": (2, "--verbose", "--json"),
    "models extra": (2, "'extra'", "options only"),
    "convert": (2, "IN"),
    "convert a.pth": (2, "OUT"),
    "convert a.pth b.pth": (2, "OUT", ".safetensors", "b.pth"),
    "convert a.pth b.safetensors c": (2, "'c'", "only IN OUT"),
    "convert a.pth b.safetensors": (1, "a.pth"),
    "convert a.pth b.safetensors --num-classes -1": (2, "--num-classes", "-1"),
    "data": (2, "usage: van data SUBCOMMAND"),
    "data letters --out x": (2, '"letters"', "digits, digit-scenes, check"),
    "data digits": (2, "--out PATH"),
    "data digit-scenes": (2, "--out PATH"),
    "data digit-scenes --out x --val 0": (2, "--val: expected at least 1, got 0"),
    "data digit-scenes --out x --max-digits 0": (2, "--max-digits: expected at least 1, got 0"),
    "data digit-scenes --out x --image-size 8": (2, "--image-size: expected at least 32, got 8"),
    "data check": (2, "PATH"),
    "data check nowhere": (1, "nowhere"),
    "data check nowhere --preview grid.jpg": (2, "--preview", ".png", "grid.jpg"),
    "bench nets": (2, '"nets"', "ops, models, sessions"),
    "bench models --models van_b9": (2, "van_b9"),
    "bench models --backends tensorrt": (2, "tensorrt"),
    "bench models --image-size 8": (2, "--image-size", "32", "8"),
    "bench models --rounds 0": (2, "--rounds", "0"),
    "bench ops --rounds 0": (2, "--rounds", "at least 1", "0"),
    "bench ops --rounds some": (2, "--rounds: expected an integer, got 'some'"),
    "design --kernel 0": (2, "--kernel: expected 1 to 10,000, got 0"),
    "design --kernel 2000000000": (2, "--kernel", "2000000000"),
    "design --channels -3": (2, "--channels", "-3"),
    "design --size 0": (2, "--size", "0"),
    "design --kernel five": (2, "--kernel: expected an integer, got 'five'"),
    "design --plot costs.jpg": (2, "--plot", ".png", "costs.jpg"),
    "completion": (2, "SHELL"),
    "completion tcsh": (2, "SHELL: expected one of bash, zsh, fish, got 'tcsh'"),
    "completion fisch": (2, "did you mean fish?"),
}
"""Command line to its status and the facts that its message has."""


def test_wrong_usage_is_one_line_with_its_facts_and_writes_nothing(subtests, van, tmp_path, monkeypatch):
    for line in WRONG:
        with subtests.test(line=line):
            monkeypatch.chdir(tmp_path)
            status, *facts = WRONG[line]
            ran = van(*line.split())
            assert ran.status == status, ran
            if facts[0].startswith("usage"):
                assert facts[0] in ran.out
            else:
                assert (ran.out, ran.err[:5], ran.err.count("\n")) == ("", "van: ", 1)
                assert [fact for fact in facts if fact not in ran.err] == [], ran.err
            assert not list(tmp_path.iterdir())


def test_every_verb_has_a_wrong_command_line_above():
    assert {line.split()[0] for line in WRONG} == set(VERBS)


def test_options_take_underscores_and_equals_signs(van):
    expected = van("design", "--channels", "32", "--size", "7", "--json")
    assert van("design", "--channels=32", "--size=7", "--json") == expected
    ran = van("data", "digit-scenes", "--out", "x", "--image_size", "8")
    assert "--image-size: expected at least 32, got 8" in ran.err


def test_after_two_dashes_everything_is_positional(van, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("-x.jpg", "--help", "--top"):
        ran = van("predict", checkpoint, "--", name)
        assert (ran.status, ran.out) == (1, "")
        assert ran.err.startswith(f"van: {name}: ")  # a missing file, not an option
    ran = van("models", "--", "--json")
    assert (ran.status, "unexpected argument '--json'" in ran.err) == (2, True)


def test_a_negative_number_is_a_value_and_a_dash_alone_is_standard_input(van):
    assert "--channels: expected 1 to 1,000,000, got -3" in van("design", "--channels", "-3").err
    assert "-1000.0" in van("train", "digits", "--out", "x", "--lr", "-1e3").err
    assert van("predict", "van_b0", "-", stdin=b"").status == 2
