"""Suggestions for unknown verbs, recipes, sub-commands and options."""

from van.cli.commands import list_commands
from van.cli.suggestions import OPTIONS, RECIPES, VERBS, suggest
from van.cli.verbs import VERBS as OURS
from van.recipes import ALIASES
from van.recipes import RECIPES as OUR_RECIPES

TRAIN = "train classify --data x --out y"
UNKNOWN = {
    f"{TRAIN} --imgsz 320": ("--imgsz", "train classify", "--image-size"),
    f"{TRAIN} --img-size 320": ("--img-size", "train classify", "--image-size"),
    f"{TRAIN} --input-size 320": ("--input-size", "train classify", "--image-size"),
    f"{TRAIN} --weights a.pth": ("--weights", "train classify", "--init-from"),
    f"{TRAIN} --checkpoint a.pth": ("--checkpoint", "train classify", "--init-from"),
    f"{TRAIN} --pretrained": ("--pretrained", "train classify", "--init-from"),
    f"{TRAIN} --learning-rate 1": ("--learning-rate", "train classify", "--lr"),
    f"{TRAIN} --lr0=1": ("--lr0", "train classify", "--lr"),
    f"{TRAIN} --batch 8": ("--batch", "train classify", "--batch-size"),
    f"{TRAIN} -b 8": ("-b", "train classify", "--batch-size"),
    f"{TRAIN} --wd 0": ("--wd", "train classify", "--weight-decay"),
    f"{TRAIN} --amp": ("--amp", "train classify", "--precision"),
    f"{TRAIN} --half": ("--half", "train classify", "--precision"),
    f"{TRAIN} --num-workers 2": ("--num-workers", "train classify", "--workers"),
    f"{TRAIN} --num_workers 2": ("--num_workers", "train classify", "--workers"),
    f"{TRAIN} -j 2": ("-j", "train classify", "--workers"),
    f"{TRAIN} --epoch 2": ("--epoch", "train classify", "--epochs"),
    "train classify --dataset x": ("--dataset", "train classify", "--data"),
    "train classify --data-dir x": ("--data-dir", "train classify", "--data"),
    "train classify --project x": ("--project", "train classify", "--out"),
    "train classify --output x": ("--output", "train classify", "--out"),
    "train classify --save-dir x": ("--save-dir", "train classify", "--out"),
    "train detect --imgsz 320": ("--imgsz", "train detect", "--min-size"),
    "predict van_b0 a.png --conf 0.2": ("--conf", "predict", "--min-score"),
    "predict van_b0 a.png --score-thr 0.2": ("--score-thr", "predict", "--min-score"),
    "predict --weights a.pth": ("--weights", "predict", "the argument MODEL"),
    "eval --checkpoint a.pth": ("--checkpoint", "eval", "the argument CHECKPOINT"),
    "bench ops --round 3": ("--round", "bench ops", "--rounds"),
}


def test_an_unknown_option_leads_to_the_one_that_is_meant(subtests, van):
    for line in UNKNOWN:
        with subtests.test(line=line):
            unknown, path, meant = UNKNOWN[line]
            ran = van(*line.split())
            message = f'van: unknown option {unknown} for "van {path}"; did you mean {meant}? See "van {path} --help"\n'
            assert (ran.status, ran.out, ran.err) == (2, "", message)


def test_an_unknown_name_leads_to_the_one_that_is_meant(subtests, van):
    for line, unknown, place, meant in [
        ("val", 'verb "val"', "", "eval"),
        ("validate x", 'verb "validate"', "", "eval"),
        ("test", 'verb "test"', "", "eval"),
        ("detect", 'verb "detect"', "", "predict or train"),
        ("infer", 'verb "infer"', "", "predict"),
        ("inference", 'verb "inference"', "", "predict"),
        ("segment", 'verb "segment"', "", "predict or train"),
        ("benchmark", 'verb "benchmark"', "", "bench"),
        ("info", 'verb "info"', "", "models"),
        ("heatmap", 'verb "heatmap"', "", "explain"),
        ("gradcam", 'verb "gradcam"', "", "explain"),
        ("cam", 'verb "cam"', "", "explain"),
        ("digits", 'verb "digits"', "", "train digits"),
        ("trian digits", 'verb "trian"', "", "train"),
        ("train classification", 'recipe "classification"', "train", "classify"),
        ("train detection", 'recipe "detection"', "train", "detect"),
        ("train segmentation", 'recipe "segmentation"', "train", "segment"),
        ("train imagenet", 'recipe "imagenet"', "train", "imagenet1k"),
        ("train digit", 'recipe "digit"', "train", "digits"),
        ("bench model", 'sub-command "model"', "bench", "models"),
        ("data digit", 'sub-command "digit"', "data", "digits"),
    ]:
        with subtests.test(line=line, unknown=unknown, place=place, meant=meant):
            ran = van(*line.split())
            command = f"van {place}".strip()
            where = f' for "{command}"' if place else ""
            message = f'van: unknown {unknown}{where}; did you mean {meant}? See "{command} --help"\n'
            assert (ran.status, ran.out, ran.err) == (2, "", message)


def test_finetune_is_another_name_of_classify(van):
    assert van("train", "finetune", "--help") == van("train", "classify", "--help")


def test_without_a_similar_name_all_names_are_listed(van):
    ran = van("zzz")
    assert ran.status == 2
    assert f"expected one of {', '.join(OURS)}" in ran.err
    assert "did you mean" not in van("train", "digits", "--zzz").err


def test_the_tables_suggest_only_names_that_exist():
    commands = list_commands()
    flags = [flag for command in commands.values() for flag in command.flags()]
    known = {flag.option or flag.metavar for flag in flags}
    assert {target for targets in OPTIONS.values() for target in targets} <= known
    assert {target for targets in VERBS.values() for target in targets} <= set(OURS)
    assert {target for targets in RECIPES.values() for target in targets} <= set(OUR_RECIPES)


def test_the_tables_hold_no_name_that_exists_everywhere():
    assert not set(VERBS) & set(OURS)
    assert not set(RECIPES) & {*OUR_RECIPES, *ALIASES}


def test_similar_names_are_found_by_spelling(subtests):
    for name, known, expected in [
        ("epoch", ["epochs", "lr"], ["epochs"]),
        ("lr", ["epochs"], []),
        ("", ["a"], []),
        ("size", [], []),
    ]:
        with subtests.test(name=name, known=known, expected=expected):
            assert suggest(name, known, {}) == expected


def test_a_name_of_another_tool_goes_before_a_similar_spelling():
    assert suggest("conf", ["confusion", "min-score"], {"conf": ("min-score",)}) == ["min-score"]
    assert suggest("confusio", ["confusion", "min-score"], {"conf": ("min-score",)}) == ["confusion"]
