"""Where a network runs: the device and its processes, the precision, the memory layout, random generators.

`accelerate` (Hugging Face, 2022) places the network and the batches: on a CPU, on a GPU, or on many processes started
by `torchrun`.
"""

import ctypes
import os

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.state import AcceleratorState, PartialState
from torch import nn

DEVICES = ("auto", "cpu", "cuda", "mps")
LAUNCHER = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets for each process
PRECISIONS = ("auto", "float32", "bfloat16")


def resolve_precision(precision: str, device: torch.device) -> str:
    """The precision that "auto" stands for: bfloat16 on GPUs that support it, float32 elsewhere.

    A CPU without bfloat16 instructions emulates them and is twenty times slower than in float32, so bfloat16 on a CPU
    must be asked for.  Raises ValueError for a precision that is none of PRECISIONS.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}")
    if precision != "auto":
        return precision
    return "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"


def keep_freed_memory():
    """Let glibc reuse the memory that a training step frees, instead of returning it to the kernel.

    By default glibc maps every large block anew, and the kernel clears each of its pages.  Reusing them makes training
    on two cores up to twice as fast (benchmarks/training_step.csv) with bit-identical results, for memory that stays
    reserved.  It equals MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ in the environment.  Call it once, when a
    process starts.  Without glibc (macOS, Windows) nothing happens.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    trim_threshold, mmap_threshold = -1, -3  # their numbers in malloc.h
    mallopt(mmap_threshold, 2**30)
    mallopt(trim_threshold, 2**31 - 1)


def build_accelerator(device: str = "auto", gradient_accumulation_steps: int = 1) -> Accelerator:
    """Accelerate's engine on `device`, one of DEVICES; "auto" is a GPU if there is one, NVIDIA's or Apple's.

    `batch_size` is the global batch size: every batch is split among the processes.  Raises ValueError for a device
    that is not available, and for variables of the environment that an earlier launcher has left behind.
    """
    if device not in DEVICES:
        raise ValueError(f"device is {device!r}; it must be one of {', '.join(DEVICES)}")
    there = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if device in there and not there[device]():
        raise ValueError(f"device is {device!r}, but torch finds no such GPU here; use --device cpu")
    missing = [name for name in LAUNCHER if name not in os.environ]
    left = [name for name in LAUNCHER[:3] if name in os.environ]
    if left and missing:
        raise ValueError(f"{left[0]} is set in the environment, but {missing[0]} is not; unset it, or use torchrun")
    on_cpu = device == "cpu" or not torch.accelerator.is_available()
    kind = "cpu" if on_cpu else torch.accelerator.current_accelerator().type
    if PartialState._shared_state and PartialState().num_processes == 1 and PartialState().device.type != kind:
        AcceleratorState._reset_state(reset_partial_state=True)  # else a notebook's first device would be that of all
    try:
        return Accelerator(
            cpu=on_cpu,  # else several processes would not find each other
            gradient_accumulation_steps=gradient_accumulation_steps,
            dataloader_config=DataLoaderConfiguration(split_batches=True, non_blocking=True),
        )
    except ValueError as error:  # accelerate names the value alone
        given = [f"{name}={value}" for name, value in os.environ.items() if name.startswith("ACCELERATE_")]
        if not given:
            raise
        raise ValueError(f"accelerate refuses the environment, {', '.join(given)} ({error}); unset it") from error


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The precision as a context.  Accelerate's own would be fixed for the whole process, but experiments differ."""
    enabled = resolve_precision(precision, device) == "bfloat16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def as_input_of(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Images in the precision of the model's weights, and (N, C, H, W) in the memory layout of its convolutions.

    The batches and the networks of this project are channels last, which is faster.  Others are contiguous, and may
    flatten their maps by view(), which needs contiguous ones.
    """
    weight = next(model.parameters(), None)
    if weight is None or not (weight.is_floating_point() and images.is_floating_point()):
        return images
    images = images.to(weight.dtype)
    if images.dim() != 4:
        return images
    channels_last = any(weight.dim() == 4 and not weight.is_contiguous() for weight in model.parameters())
    return images.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def get_generators(sampler_generator: torch.Generator | None) -> dict:
    """The states of all random generators: the sampler's, the CPU's and the GPUs'."""
    return {
        "sampler": None if sampler_generator is None else sampler_generator.get_state(),
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "mps": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
    }


def set_generators(sampler_generator: torch.Generator | None, states: dict):
    """Set all random generators to what `get_generators` gave."""
    if sampler_generator is not None:
        sampler_generator.set_state(states["sampler"])
    torch.set_rng_state(states["cpu"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"][: torch.cuda.device_count()])  # it may have begun on more
    if states.get("mps") is not None and torch.backends.mps.is_available():  # older states have none
        torch.mps.set_rng_state(states["mps"])
