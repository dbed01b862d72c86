"""MXFP4: 32 values of 4 bits with a common scale, a power of two.

Source: OCP Microscaling Formats (MX) Specification 1.0, sections 5.3.3, 5.4.1 and 6.3.
"""

from typing import Any

import torch

# Values of the first eight codes; the others are the same with a minus sign
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E8M0_BIAS = 127
E8M0_NAN = 255


def unpack_mxfp4(
    blocks: torch.Tensor, scales: torch.Tensor, dtype: Any = torch.bfloat16
) -> torch.Tensor:
    """The weights that packed blocks stand for. In bfloat16 it is exact: a value has 2 bits.

    Args:
        blocks: (..., groups, 16) uint8, two values a byte, the low half first.
        scales: (..., groups) uint8; the factor is 2^(scale - 127), and 255 stands for NaN.

    Returns:
        (..., 32 * groups) of `dtype`.
    """
    values = torch.tensor([*E2M1, *(-value for value in E2M1)], device=blocks.device)
    codes = torch.arange(256, device=blocks.device)
    pairs = torch.stack([values[codes & 15], values[codes >> 4]], 1)  # of each possible byte
    factors = torch.exp2(scales.float() - E8M0_BIAS)
    factors[scales == E8M0_NAN] = torch.nan
    unpacked = pairs[blocks.int()].flatten(-2) * factors.unsqueeze(-1)
    return unpacked.flatten(-2).to(dtype)
