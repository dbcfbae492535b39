"""Runs in an interpreter of its own, whose HF_ENDPOINT is a local hub; prints what each call came to as JSON.

huggingface_hub reads its environment when it is imported, so these cases cannot share the tests' interpreter.
"""

import json
import logging
import os
import sys
import urllib.request

import timm
import torch

import van
from parity import distance_from_recorded, picture
from van.errors import VanError

assert van


class Told(logging.Handler):
    """Collects what the user is told."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def came_to(name: str, **options) -> dict:
    """The error, or the network's distance from the recorded answers and its output's shape."""
    told = Told()
    logging.getLogger("van").addHandler(told)
    try:
        model = timm.create_model(name, pretrained=True, **options).double().eval()
    except VanError as error:
        return {"error": type(error).__name__, "message": str(error), "told": told.lines}
    finally:
        logging.getLogger("van").removeHandler(told)
    result = {"told": told.lines, "config_keys": sorted(model.pretrained_cfg)}
    with torch.no_grad():
        x = picture()[:, : options.get("in_chans", 3)]
        out = model(x)
        if options.get("features_only"):
            return {**result, "shapes": [list(m.shape) for m in out], "pooled": out[-1].mean((2, 3))[0, :3].tolist()}
        result |= {"shapes": [list(out.shape)], "pooled": model.forward_features(x).mean((2, 3))[0, :3].tolist()}
        if out.shape[1] == 1000 and not options.get("in_chans"):
            result["distance"] = distance_from_recorded("van_b0", out)
    return result


def at(repository: str, file: str = "van_tiny_754.pth.tar") -> dict:
    return {"pretrained_cfg_overlay": {"hf_hub_id": repository, "hf_hub_filename": file}}


def served(other_cache: str) -> dict:
    """What an answering hub gives, then one that was stopped."""
    results = {
        "plain": came_to("van_b0"),
        "ten classes": came_to("van_b0", num_classes=10),
        "no classes": came_to("van_b0", num_classes=0),
        "features": came_to("van_b0", features_only=True, out_indices=(1, 3)),
        "one channel": came_to("van_b0", in_chans=1),
        "own cache": came_to("van_b0", cache_dir=other_cache),
        "safetensors": came_to("van_b0", **at("us/safe", "model.safetensors")),
        "at a revision": came_to("van_b0", **at("us/safe@main", "model.safetensors")),
        "no repository": came_to("van_b0", **at("us/nowhere")),
        "no file": came_to("van_b0", **at("us/safe", "other.pth")),
        "not a name": came_to("van_b0", **at("not a/valid/name")),
        "short transfer": came_to("van_b0", **at("us/short")),
        "cut file": came_to("van_b0", **at("us/cut")),
        "hostile": came_to("van_b0", **at("us/hostile")),
        "another size": came_to("van_b1", **at("us/safe", "model.safetensors")),
        "out of order": came_to("van_b0", **at("us/broken")),
        "van_b4": came_to("van_b4"),
    }
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{os.environ['HF_ENDPOINT']}/stop").close()
    return {**results, "stopped, cached": came_to("van_b0")}


def offline(_: str) -> dict:
    """What HF_HUB_OFFLINE leaves."""
    return {"offline, cached": came_to("van_b0"), "offline, not cached": came_to("van_b1")}


def down(_: str) -> dict:
    """What a hub gives that never answers."""
    return {"down, not cached": came_to("van_b1")}


if __name__ == "__main__":
    situation = {"served": served, "offline": offline, "down": down}[sys.argv[1]]
    sys.stdout.write(json.dumps(situation(sys.argv[2])))
