"""Writes fp8_cases.h: what PyTorch's float8_e4m3fn and float8_e5m2 make of every code, and of some thousand numbers.

    python fp8_cases.py > fp8_cases.h        # needs torch
"""

import torch

TYPES = (torch.float8_e4m3fn, torch.float8_e5m2)


def bits(x: torch.Tensor) -> list[int]:
    return [b & 0xFFFFFFFF for b in x.view(torch.int32).tolist()]


def numbers() -> torch.Tensor:
    """Values, ties and their neighbours, all magnitudes, too great ones, infinity, NaN; the negative ones are up to the reader."""
    torch.manual_seed(1)
    out = []
    for t in TYPES:
        value = torch.arange(256).to(torch.uint8).view(t).float()
        value = value[value.isfinite() & (value >= 0)].sort().values
        tie = (value[1:] + value[:-1]) / 2
        out += [value, tie, tie.nextafter(torch.tensor(torch.inf)), tie.nextafter(torch.tensor(0.0))]
        out.append(value[-1] * torch.tensor([1.01, 1.03, 1.0625, 1.07, 1.25, 2, 1000]))
    out.append(torch.rand(300) * 460)
    out.append(torch.exp2(torch.rand(300) * 36 - 20))
    out.append(torch.tensor([0.0, 1e-45, 1e-38, 1.2e-38, 3.4e38, torch.inf, torch.nan]))
    return torch.cat(out)


def encode(x: torch.Tensor, t: torch.dtype) -> list[int]:
    top = torch.finfo(t).max
    return x.clamp(-top, top).to(t).view(torch.uint8).tolist()  # clamp keeps a NaN


def main() -> None:
    print("/* Made by fp8_cases.py: not to be edited.  SPDX-License-Identifier: MIT */")
    print("static const uint32_t f8_value[2][256] = { /* E4M3, E5M2: the number of each code, as fp32 */")
    for t in TYPES:
        value = bits(torch.arange(256).to(torch.uint8).view(t).float())
        print("    {")
        for i in range(0, 256, 8):
            print("        " + " ".join(f"0x{v:08X}," for v in value[i : i + 8]))
        print("    },")
    print("};")
    x = numbers()
    print("static const struct f8_case { uint32_t f32; uint8_t code[2]; } f8_cases[] = { /* saturating; not the negative ones */")
    rows = [f"{{ 0x{b:08X}, {{ 0x{c:02X}, 0x{d:02X} }} }}," for b, c, d in zip(bits(x), *(encode(x, t) for t in TYPES))]
    for i in range(0, len(rows), 4):
        print("    " + " ".join(rows[i : i + 4]))
    print("};")


main()
