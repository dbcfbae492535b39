"""A script for an interpreter with HF_ENDPOINT set to a local hub; it prints the result of each call as JSON.

huggingface_hub reads its environment when it is imported, so these cases cannot share the tests' interpreter.
"""

import json
import logging
import os
import sys
import time
import urllib.request

import timm
import torch

import van
from parity import distance_from_recorded, image
from van.errors import VanError

assert van


class WarningCollector(logging.Handler):
    """A log handler that collects warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def result_of(name: str, **options) -> dict:
    """Return the error, or the distance of the outputs from the recorded ones and their shape."""
    collector = WarningCollector()
    logging.getLogger("van").addHandler(collector)
    try:
        model = timm.create_model(name, pretrained=True, **options).double().eval()
    except VanError as error:
        return {"error": type(error).__name__, "message": str(error), "warnings": collector.lines}
    finally:
        logging.getLogger("van").removeHandler(collector)
    result = {"warnings": collector.lines, "config_keys": sorted(model.pretrained_cfg)}
    with torch.no_grad():
        x = image()[:, : options.get("in_chans", 3)]
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
    """Return the results with a hub that responds, then with one that was stopped."""
    results = {
        "plain": result_of("van_b0"),
        "ten classes": result_of("van_b0", num_classes=10),
        "no classes": result_of("van_b0", num_classes=0),
        "features": result_of("van_b0", features_only=True, out_indices=(1, 3)),
        "one channel": result_of("van_b0", in_chans=1),
        "own cache": result_of("van_b0", cache_dir=other_cache),
        "safetensors": result_of("van_b0", **at("us/safe", "model.safetensors")),
        "at a revision": result_of("van_b0", **at("us/safe@main", "model.safetensors")),
        "no repository": result_of("van_b0", **at("us/nowhere")),
        "no file": result_of("van_b0", **at("us/safe", "other.pth")),
        "not a name": result_of("van_b0", **at("not a/valid/name")),
        "short transfer": result_of("van_b0", **at("us/short")),
        "cut file": result_of("van_b0", **at("us/cut")),
        "hostile": result_of("van_b0", **at("us/hostile")),
        "another size": result_of("van_b1", **at("us/safe", "model.safetensors")),
        "out of order": result_of("van_b0", **at("us/broken")),
        "van_b4": result_of("van_b4"),
    }
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{os.environ['HF_ENDPOINT']}/stop").close()
    return {**results, "stopped, cached": result_of("van_b0")}


def offline(_: str) -> dict:
    """Return the results with HF_HUB_OFFLINE."""
    return {"offline, cached": result_of("van_b0"), "offline, not cached": result_of("van_b1")}


def down(_: str) -> dict:
    """Return the results with a hub that never responds, without the half minute between huggingface_hub's attempts."""
    time.sleep = lambda _: None
    return {"down, not cached": result_of("van_b1")}


if __name__ == "__main__":
    situation = {"served": served, "offline": offline, "down": down}[sys.argv[1]]
    sys.stdout.write(json.dumps(situation(sys.argv[2])))
