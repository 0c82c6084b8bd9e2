"""The network: diffraction amplitudes of a group of neighbouring frames to object patches.

Axis letters: B groups, C frames in a group (gridsize squared), P probe modes, N detector pixels
along one side, S pixels along one side of a group's canvas, F feature maps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ptycho_tasks_torch.canvas import Corners, add_patches, cut_patches
from ptycho_tasks_torch.physics import intensities, shift_probe

DEPTH = 3


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.second(functional.relu(self.first(x))))


class UNet(nn.Module):
    def __init__(self, inputs: int, channels: int, stem: int = 1) -> None:
        super().__init__()
        self.stem = stem
        f = channels
        self.enc = nn.ModuleList([Block(inputs * stem**2, f), Block(f, 2 * f)])
        self.mid = Block(2 * f, 2 * f)
        self.dec = nn.ModuleList([Block(4 * f, f), Block(2 * f, f)])
        self.last = nn.Conv2d(f, 2 * stem**2, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.stem > 1:
            x = functional.pixel_unshuffle(x, self.stem)
        a = self.enc[0](x)
        b = self.enc[1](functional.avg_pool2d(a, 2))
        m = self.mid(functional.avg_pool2d(b, 2))
        up = functional.interpolate(m, scale_factor=2)
        b = self.dec[0](torch.cat([up, b], 1))
        up = functional.interpolate(b, scale_factor=2)
        a = self.dec[1](torch.cat([up, a], 1))
        y = self.last(a)
        if self.stem > 1:
            y = functional.pixel_shuffle(y, self.stem)
        return y


class Frames:
    """measured amplitude, shifted probes, corners of one batch"""

    def __init__(self, x, positions, probe, scale, multiple):
        N = x.shape[-1]
        if probe.ndim == 2:
            probe = probe[None]
        rel = positions[:, :, 0, :]
        whole = torch.round(rel)
        self.N = N
        self.probes = shift_probe(probe, rel - whole) / scale[:, None, None, None, None]
        self.amp = torch.fft.ifftshift(x / scale[:, None, None, None], dim=(-2, -1))
        corners = whole.to(torch.int64)
        reach = int(corners.abs().max())
        S = N + 2 * reach
        S = -(-S // multiple) * multiple
        m = (S - N) // 2
        self.S = S
        self.corners: Corners = [[(y + m, xx + m) for y, xx in row] for row in corners.tolist()]
        self.single = S == N and x.shape[1] == 1
        ill = self.probes.abs().square().sum(2)
        self.ill = self.add(ill)
        top = self.ill.amax((-2, -1), keepdim=True)
        self.weight = 1 / (self.ill + 0.02 * top)
        self.rel_ill = self.ill / top

    def add(self, p):
        return p[:, 0] if self.single else add_patches(p, self.corners, (self.S, self.S))

    def cut(self, c):
        return c[:, None] if self.single else cut_patches(c, self.corners, self.N)

    def step(self, canvas):
        waves = self.probes * self.cut(canvas)[:, :, None]
        far = torch.fft.fft2(waves, norm="ortho")
        mod = (far.real.square() + far.imag.square()).sum(2, keepdim=True)
        ratio = self.amp[:, :, None] / (mod + 1e-6).sqrt()
        diff = torch.fft.ifft2(far * (ratio - 1), norm="ortho")
        return self.add((self.probes.conj() * diff).sum(2)) * self.weight


class ObjectNetwork(nn.Module):
    def __init__(self, channels=16, warm=8, steps=2, stem=1, alpha=1.0):
        super().__init__()
        self.warm = warm
        self.nets = nn.ModuleList([UNet(5, channels, stem) for _ in range(steps)])
        self.gain = nn.Parameter(torch.full((steps,), alpha))
        self.multiple = 4 * stem

    def estimates(self, x, positions, probe, scale):
        f = Frames(x, positions, probe, scale, self.multiple)
        canvas = torch.ones_like(f.ill).to(torch.complex64)
        with torch.no_grad():
            for _ in range(self.warm):
                canvas = canvas + f.step(canvas)
        out = []
        for gain, net in zip(self.gain, self.nets):
            g = f.step(canvas)
            feats = torch.stack([canvas.real - 1, canvas.imag, g.real, g.imag, f.rel_ill], 1)
            d = net(feats)
            canvas = canvas + gain * g + torch.complex(d[:, 0], d[:, 1])
            out.append(canvas)
        return [f.cut(c) for c in out] or [f.cut(canvas)], f

    def forward(self, x, positions, probe, scale):
        return self.estimates(x, positions, probe, scale)[0][-1]
