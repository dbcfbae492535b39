"""Run by ``torchrun`` with two processes: trains and evaluates, and leaves what it found for the test to read."""

import json
import os
import sys
from pathlib import Path

from van.engine.distributed import started
from van.engine.evaluate import evaluate
from van.engine.fit import fit
from van.models.van import VAN
from van.tasks.classify import Classify

sys.path.insert(0, str(Path(__file__).parents[1]))
from engine.tiny import OPTIONS, Squares, exact_settings, tiny_job


def main(out: Path) -> None:
    """Two ways to train, a resumed run, and an evaluation over an odd number of samples."""
    fit(tiny_job(**exact_settings()), out / "ddp")
    fit(tiny_job(**exact_settings(), accumulate=2), out / "accumulated")
    fit(tiny_job(**exact_settings(), strategy="fsdp2"), out / "fsdp2")
    fit(tiny_job(epochs=2), out / "random")
    fit(tiny_job(epochs=2), out / "random", resume=True)
    import torch

    torch.manual_seed(3)
    model = VAN(num_classes=3, **OPTIONS)
    with started(device="cpu") as accelerator:
        task = Classify(("red", "green", "blue"))
        found = evaluate(task, model, Squares(29, broken=(4,)), accelerator, batch_size=4)
        if accelerator.is_main_process:
            record = {"metrics": found.metrics, "samples": found.samples, "unreadable": found.unreadable}
            record |= {"confusion": found.details["confusion"].tolist(), "world": accelerator.num_processes}
            (out / "evaluation.json").write_text(json.dumps(record))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    sys.stderr.flush()
    os._exit(0)  # torch with gloo now and then aborts while the interpreter is taken down
