"""bfloat16 where it pays: in the steps of training, never in what is measured."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class _Now:
    chosen = False  # whether this process trains in bfloat16
    training = False  # whether it does so now, in whichever thread


def choose(precision: str, device: torch.device) -> str | None:
    """Sets the precision of this process from here on, as with the number of threads; returns what to say about it.

    auto: bfloat16 where the device multiplies it (on x86: avx512_bf16 or amx_bf16), else float32.
    """
    fast = has_bf16(device)
    _Now.chosen = precision == "bf16" or (precision == "auto" and fast)
    if precision == "fp32":
        return None
    found = "has" if fast else "lacks"
    kind = "bf16 in training, fp32 in evaluations" if _Now.chosen else "fp32"
    return f"precision={precision}: {kind} (this {device.type} {found} bfloat16)"


def has_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


@contextmanager
def training() -> Iterator[None]:
    """Within, networks that can compute in the chosen precision do; outside, all compute in float32."""
    _Now.training = _Now.chosen
    try:
        yield
    finally:
        _Now.training = False


def chosen() -> bool:
    """Whether this process trains in bfloat16."""
    return _Now.chosen


def reduced() -> bool:
    """Whether to compute in bfloat16 now."""
    return _Now.training
