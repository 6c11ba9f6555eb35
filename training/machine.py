"""this machine -> the arithmetic that trains fastest on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Machine:
    """What a training runs on."""

    device: str
    """In words, for a person."""
    precision: str
    """Keras' name of the arithmetic that is fastest without losing accuracy."""


def find_machine() -> Machine:
    """Look for a GPU that TensorFlow can use, else at the processor."""
    import tensorflow as tf

    for gpu in tf.config.list_physical_devices("GPU"):
        details = tf.config.experimental.get_device_details(gpu)
        return Machine(details.get("device_name", gpu.name), precision_on_gpu(details.get("compute_capability")))
    return Machine("the processor", precision_on_processor(Path("/proc/cpuinfo")))


def precision_on_gpu(compute_capability: tuple[int, int] | None) -> str:
    """bfloat16 from Ampere on, float16 with scaled losses from Volta on, float32 before.

    Micikevicius et al., Mixed Precision Training (2018), arXiv 1710.03740; NVIDIA's table of compute capabilities.
    """
    major = 0 if compute_capability is None else compute_capability[0]
    if major >= 8:
        return "mixed_bfloat16"
    return "mixed_float16" if major == 7 else "float32"


def precision_on_processor(cpuinfo: Path) -> str:
    """bfloat16 doubles the speed where the processor computes in it, and halves it where it does not."""
    try:
        flags = cpuinfo.read_text()
    except OSError:
        return "float32"
    return "mixed_bfloat16" if "avx512_bf16" in flags or "amx_bf16" in flags else "float32"
