"""Script for ``torchrun`` with two processes: trains and evaluates, and writes the results for the test to read."""

import json
import os
import sys
from pathlib import Path

from van.backbones.van import VAN
from van.tasks.classification import ClassificationTask
from van.training.distributed import accelerator_context
from van.training.evaluate import evaluate
from van.training.trainer import fit

sys.path.insert(0, str(Path(__file__).parents[1]))
from training.tiny import OPTIONS, Squares, exact_settings, tiny_run


def main(out: Path) -> None:
    """Train with DDP, accumulation and FSDP2, resume a run, and evaluate an odd number of samples."""
    fit(tiny_run(**exact_settings()), out / "ddp")
    fit(tiny_run(**exact_settings(), grad_accum_steps=2), out / "accumulated")
    fit(tiny_run(**exact_settings(), strategy="fsdp2"), out / "fsdp2")
    fit(tiny_run(epochs=2), out / "random")
    fit(tiny_run(epochs=2), out / "random", resume=True)
    import torch

    torch.manual_seed(3)
    model = VAN(num_classes=3, **OPTIONS)
    with accelerator_context(device="cpu") as accelerator:
        task = ClassificationTask(("red", "green", "blue"))
        evaluation = evaluate(task, model, Squares(29, broken=(4,)), accelerator, batch_size=4)
        if accelerator.is_main_process:
            record = {"metrics": evaluation.metrics, "samples": evaluation.samples, "unreadable": evaluation.unreadable}
            record |= {"confusion": evaluation.details["confusion"].tolist(), "world_size": accelerator.num_processes}
            (out / "evaluation.json").write_text(json.dumps(record))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    sys.stderr.flush()
    os._exit(0)  # torch with gloo sometimes aborts while the interpreter shuts down
