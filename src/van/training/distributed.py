"""Device selection and distributed training with accelerate: one process, or as many as ``torchrun`` started."""

import contextlib
import os
from collections.abc import Generator

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from van.device import to_channels_last
from van.errors import UsageError
from van.ops import enable_memory_reuse
from van.training.settings import TrainSettings


@contextlib.contextmanager
def accelerator_context(*, device: str = "auto", precision: str = "fp32") -> Generator[Accelerator, None, None]:
    """Yield an ``Accelerator`` for a block of code and reset accelerate's global state after it.

    Args:
        device: cpu, cuda, mps, or auto, which takes the first one available of cuda, mps and cpu.
        precision: fp32, bf16 or fp16.

    Raises:
        UsageError: the device is unavailable, does not support the precision, or accelerate runs another number
            of processes than ``WORLD_SIZE``.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True, "auto": True}
    if device not in available:
        raise UsageError(f"--device: expected auto, cpu, cuda or mps, got {device!r}")
    if not available[device]:
        raise UsageError(f"--device {device}: PyTorch finds no such device on this machine; use --device cpu")
    on_cpu = device == "cpu" or not (available["cuda"] or available["mps"])
    if on_cpu and precision == "fp16":
        raise UsageError("--precision fp16: expected a GPU, got a CPU; use --precision bf16 or fp32")
    enable_memory_reuse()
    accelerator = Accelerator(cpu=on_cpu, mixed_precision={"fp32": "no"}.get(precision, precision))
    try:
        expected = int(os.environ.get("WORLD_SIZE", "1"))
        if accelerator.num_processes != expected:
            raise UsageError(
                f"WORLD_SIZE: expected {expected} processes, got {accelerator.num_processes}; start them with torchrun"
            )
        yield accelerator
    finally:
        # accelerate keeps its state until the process ends; the next run in this process may have other settings.
        # A process group stays until the process ends: gloo can neither be created twice nor destroyed at exit.
        AcceleratorState._reset_state()
        GradientState._reset_state()
        if not torch.distributed.is_initialized():
            PartialState._reset_state()


def check_distributed_settings(settings: TrainSettings, accelerator: Accelerator) -> None:
    """Check that the settings fit the device and the number of processes.

    Raises:
        UsageError: the batch size is not divisible by processes times accumulation steps, or BatchNorm cannot be
            synchronized on this device.
    """
    if accelerator.device.type == "cpu" and settings.batch_norm == "sync":
        raise UsageError(
            "--batch-norm sync: expected GPUs, got a CPU, for which PyTorch has no SyncBatchNorm; use train or frozen"
        )
    divisor = settings.grad_accum_steps * accelerator.num_processes
    if settings.batch_size % divisor:
        raise UsageError(
            f"--batch-size: expected a multiple of {divisor} ({accelerator.num_processes} processes x "
            f"--grad-accum-steps {settings.grad_accum_steps}), got {settings.batch_size}"
        )


def wrap_distributed(model: nn.Module, accelerator: Accelerator, settings: TrainSettings) -> nn.Module:
    """Move the model to its device and replicate (DDP) or shard (FSDP2) it over the processes."""
    if settings.batch_norm == "sync":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model = to_device(model, accelerator, settings)
    needs_ddp = accelerator.num_processes > 1 and settings.strategy == "ddp"
    return accelerator.prepare_model(model) if needs_ddp else model


def to_device(model: nn.Module, accelerator: Accelerator, settings: TrainSettings) -> nn.Module:
    """Move the model to its device: whole and in channels_last, or sharded (FSDP2 expects contiguous strides)."""
    if settings.strategy == "fsdp2" and accelerator.num_processes > 1:
        return shard(model.to(accelerator.device), accelerator)
    return to_channels_last(model, accelerator.device)


def shard(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Shard the model with FSDP2: each block of every ``nn.Sequential`` by itself, then the remaining parameters."""
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for module in model.modules():
        if isinstance(module, nn.Sequential):
            for block in module:
                if any(True for _ in block.parameters()):
                    fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model
