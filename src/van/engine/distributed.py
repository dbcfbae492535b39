"""Devices and processes, through accelerate: one process, or as many as ``torchrun`` started."""

import contextlib
import os
from collections.abc import Generator

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from van.engine.settings import TrainSettings
from van.errors import UsageError
from van.models.load import in_channels_last
from van.ops import keep_freed_memory


@contextlib.contextmanager
def started(*, device: str = "auto", precision: str = "fp32") -> Generator[Accelerator, None, None]:
    """An accelerator for a block of code, in a process that keeps its memory.

    Args:
        device: cpu, cuda, mps, or auto: the first there is.
        precision: fp32, bf16 or fp16.

    Raises:
        UsageError: the device is not here, or cannot compute in that precision.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True, "auto": True}
    if device not in present:
        raise UsageError(f"--device is {device!r}; wanted auto, cpu, cuda or mps")
    if not present[device]:
        raise UsageError(f"--device {device}: PyTorch sees none here; use --device cpu")
    on_cpu = device == "cpu" or not (present["cuda"] or present["mps"])
    if on_cpu and precision == "fp16":
        raise UsageError("--precision fp16 needs a GPU; on a CPU use bf16 or fp32")
    keep_freed_memory()
    accelerator = Accelerator(cpu=on_cpu, mixed_precision={"fp32": "no"}.get(precision, precision))
    try:
        wanted = int(os.environ.get("WORLD_SIZE", "1"))
        if accelerator.num_processes != wanted:
            raise UsageError(f"{wanted} processes were started, {accelerator.num_processes} found; start with torchrun")
        yield accelerator
    finally:
        # accelerate keeps its state for the life of a process; the next run in it may have other settings.
        # A process group stays until the process ends: gloo cannot be made twice, nor unmade on the way out.
        AcceleratorState._reset_state()
        GradientState._reset_state()
        if not torch.distributed.is_initialized():
            PartialState._reset_state()


def check_settings(settings: TrainSettings, accelerator: Accelerator) -> None:
    """Refuse settings that do not fit the processes there are.

    Raises:
        UsageError: the batch cannot be shared evenly, or BatchNorm cannot be synchronised here.
    """
    if accelerator.device.type == "cpu" and settings.batch_norm == "sync":
        raise UsageError("--batch-norm sync needs GPUs: PyTorch has no SyncBatchNorm for the CPU; use train or frozen")
    parts = settings.accumulate * accelerator.num_processes
    if settings.batch_size % parts:
        raise UsageError(
            f"--batch-size {settings.batch_size} cannot be shared by {accelerator.num_processes} processes x "
            f"--accumulate {settings.accumulate}; wanted a multiple of {parts}"
        )


def spread(model: nn.Module, accelerator: Accelerator, settings: TrainSettings) -> nn.Module:
    """The model on its device, copied to or sharded over the processes."""
    if settings.batch_norm == "sync":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    placed = place(model, accelerator, settings)
    alone = accelerator.num_processes == 1 or settings.strategy == "fsdp2"
    return placed if alone else accelerator.prepare_model(placed)


def place(model: nn.Module, accelerator: Accelerator, settings: TrainSettings) -> nn.Module:
    """The model on its device: whole and in channels_last, or sharded (FSDP2 wants plain strides)."""
    if settings.strategy == "fsdp2" and accelerator.num_processes > 1:
        return shard(model.to(accelerator.device), accelerator)
    return in_channels_last(model, accelerator.device)


def shard(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """FSDP2: every sequence of blocks is sharded block by block, then the rest."""
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for module in model.modules():
        if isinstance(module, nn.Sequential):
            for block in module:
                if any(True for _ in block.parameters()):
                    fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model
