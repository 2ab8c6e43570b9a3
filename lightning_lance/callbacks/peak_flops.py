"""FLOP/s of common GPUs."""

from __future__ import annotations

# bfloat16 TFLOP/s without sparsity (data sheets print the double), by what the name of the GPU begins with; longer ones first.
_TFLOPS = {
    "B300": 2250,
    "B200": 2250,
    "GB200": 2250,
    "GH200": 989,
    "H200 NVL": 835,
    "H200": 989,
    "H100 NVL": 835,
    "H100 PCIe": 756,
    "H100": 989,
    "A100": 312,
    "A40": 150,
    "A30": 165,
    "A10G": 70,
    "A10": 125,
    "L40S": 362,
    "L40": 181,
    "L4": 121,
    "RTX A6000": 155,
}


def known_peak_flops(gpu: str) -> float | None:
    """Return the FLOP/s of a GPU by the name that CUDA gives it; None for one that is not in the table."""
    words = gpu.removeprefix("NVIDIA ").replace("-", " ")
    for name, tflops in _TFLOPS.items():
        if f"{words} ".startswith(f"{name} "):
            return tflops * 1e12
    return None
