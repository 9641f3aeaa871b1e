"""One UNet for DDPM++ and NCSN++ (Song et al., arXiv 2011.13456) and ADM (arXiv 2105.05233).

Parameter names, shapes and conventions are those of the published EDM checkpoints
(arXiv 2206.00364, appendix F.2), so that their weights load strictly.
"""

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Resample(nn.Module):
    """A convolution that may halve or double the resolution through a fixed binomial filter.

    `kernel` 0 has no weights and only filters. `fuse` filters after the convolution, with both
    paddings at once (the residual encoder of NCSN++).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        up: bool = False,
        down: bool = False,
        filter_taps: Sequence[float] = (1, 1),
        fuse: bool = False,
    ):
        super().__init__()
        assert not (up and down)
        self.inputs, self.outputs, self.up, self.down, self.fuse = inputs, outputs, up, down, fuse
        self.weight = self.bias = None
        if kernel:
            self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel))
            self.bias = nn.Parameter(torch.zeros(outputs))
        self.box = list(filter_taps) == [1, 1]
        taps = torch.tensor(filter_taps, dtype=torch.float32)
        taps = torch.outer(taps, taps) / taps.sum() ** 2
        self.register_buffer("resample_filter", taps[None, None] if up or down else None)

    def forward(self, x: Tensor) -> Tensor:
        weight = None if self.weight is None else self.weight.to(x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        pad = 0 if weight is None else weight.shape[-1] // 2
        if self.resample_filter is None:
            return x if weight is None else F.conv2d(x, weight, bias, padding=pad)
        taps = cast(Tensor, self.resample_filter).to(x.dtype)
        filter_pad = (taps.shape[-1] - 1) // 2
        if self.fuse:
            assert weight is not None and self.down
            x = F.conv2d(x, weight, bias, padding=pad + filter_pad)
            return F.conv2d(x, taps.expand(self.outputs, 1, -1, -1), stride=2, groups=self.outputs)
        taps = taps.expand(self.inputs, 1, -1, -1)
        if self.box:  # the box filter, by kernels that are several times faster
            x = F.interpolate(x, scale_factor=2.0) if self.up else F.avg_pool2d(x, 2)
        elif self.up:
            x = F.conv_transpose2d(x, 4 * taps, stride=2, padding=filter_pad, groups=self.inputs)
        else:
            x = F.conv2d(x, taps, stride=2, padding=filter_pad, groups=self.inputs)
        return x if weight is None else F.conv2d(x, weight, bias, padding=pad)


class GroupNorm(nn.Module):
    """Group normalisation with min(32, C/4) groups, or the next smaller divisor of C."""

    def __init__(self, channels: int, eps: float):
        super().__init__()
        self.groups = next(g for g in range(min(32, channels // 4), 0, -1) if channels % g == 0)
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.group_norm(x, self.groups, weight, bias, self.eps)


def attention(qkv: Tensor, heads: int) -> Tensor:
    """Self-attention over positions; `qkv [B, 3C, H, W]`, the three innermost of a head's split.

    The softmax is float32.
    """
    b, _, h, w = qkv.shape
    q, k, v = qkv.reshape(b * heads, -1, 3, h * w).unbind(2)
    logits = torch.einsum("ncq,nck->nqk", q, k / math.sqrt(k.shape[1]))
    out = torch.einsum("nqk,nck->ncq", logits.float().softmax(2).to(v.dtype), v)
    return out.reshape(b, -1, h, w)


class Block(nn.Module):
    """A residual block with noise and class embedding, and self-attention where asked for."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        emb: int,
        up: bool = False,
        down: bool = False,
        attend: bool = False,
        channels_per_head: int | None,
        dropout: float,
        skip_scale: float,
        eps: float,
        filter_taps: Sequence[float],
        always_project: bool,
        scale_shift: bool,
    ):
        super().__init__()
        self.inputs, self.dropout = inputs, dropout
        self.skip_scale, self.scale_shift = skip_scale, scale_shift
        resample: dict[str, Any] = {"up": up, "down": down, "filter_taps": filter_taps}
        self.norm0 = GroupNorm(inputs, eps)
        self.conv0 = Resample(inputs, outputs, 3, **resample)
        self.affine = nn.Linear(emb, outputs * (2 if scale_shift else 1))
        self.norm1 = GroupNorm(outputs, eps)
        self.conv1 = Resample(outputs, outputs, 3)
        self.skip = None
        if inputs != outputs or up or down:
            kernel = 1 if always_project or inputs != outputs else 0
            self.skip = Resample(inputs, outputs, kernel, **resample)
        self.heads = 0
        if attend:
            self.heads = outputs // channels_per_head if channels_per_head else 1
            self.norm2 = GroupNorm(outputs, eps)
            self.qkv = Resample(outputs, 3 * outputs, 1)
            self.proj = Resample(outputs, outputs, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        y = self.conv0(F.silu(self.norm0(x)))
        params = self.affine(emb)[:, :, None, None].to(y.dtype)
        if self.scale_shift:
            scale, shift = params.chunk(2, 1)
            y = F.silu(torch.addcmul(shift, self.norm1(y), scale + 1))
        else:
            y = F.silu(self.norm1(y + params))
        y = self.conv1(F.dropout(y, self.dropout, self.training))
        x = (y + (x if self.skip is None else self.skip(x))) * self.skip_scale
        if self.heads:
            x = (self.proj(attention(self.qkv(self.norm2(x)), self.heads)) + x) * self.skip_scale
        return x


class PositionalEmbedding(nn.Module):
    """[cos, sin] of the noise label at geometric frequencies; `endpoint` includes 1/10000."""

    def __init__(self, channels: int, endpoint: bool):
        super().__init__()
        self.channels, self.endpoint = channels, endpoint

    def forward(self, label: Tensor) -> Tensor:
        half = self.channels // 2
        steps = torch.arange(half, dtype=torch.float32, device=label.device)
        frequencies = (1 / 10000) ** (steps / (half - (1 if self.endpoint else 0)))
        angle = torch.outer(label.float(), frequencies)
        return torch.cat([angle.cos(), angle.sin()], 1)


class FourierEmbedding(nn.Module):
    """[cos, sin] of the noise label at fixed random frequencies."""

    def __init__(self, channels: int, scale: float = 16.0):
        super().__init__()
        self.register_buffer("freqs", torch.randn(channels // 2) * scale)

    def forward(self, label: Tensor) -> Tensor:
        angle = torch.outer(label.float(), 2 * math.pi * cast(Tensor, self.freqs))
        return torch.cat([angle.cos(), angle.sin()], 1)


class UNet(nn.Module):
    """The raw network F of EDM: `F(c_in x, c_noise, labels)`.

    `model_type` "SongUNet" (DDPM++: embedding "positional", encoder "standard"; NCSN++:
    "fourier", "residual") or "DhariwalUNet" (ADM). `channel_mult` one factor a level, finest
    first; attention where the resolution is in `attn_resolutions`. Raises ValueError on a
    variant that is not one of these.
    """

    def __init__(
        self,
        *,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_type: str = "SongUNet",
        model_channels: int = 128,
        channel_mult: Sequence[int] = (2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.1,
        embedding_type: str = "positional",
        channel_mult_noise: int = 1,
        encoder_type: str = "standard",
        decoder_type: str = "standard",
        resample_filter: Sequence[float] = (1, 1),
    ):
        super().__init__()
        song = model_type == "SongUNet"
        variant = (model_type, embedding_type, encoder_type, decoder_type)
        if not (song or model_type == "DhariwalUNet") or (
            embedding_type not in ("positional", "fourier")
            or encoder_type not in ("standard", "residual")
            or decoder_type != "standard"
        ):
            raise ValueError(f"no such UNet variant: {', '.join(variant)}")
        if (img_resolution >> (len(channel_mult) - 1)) << (len(channel_mult) - 1) != img_resolution:
            raise ValueError(
                f"resolution {img_resolution} cannot be halved {len(channel_mult) - 1} times"
            )
        self.song, self.label_dim = song, label_dim
        self.img_resolution, self.img_channels = img_resolution, img_channels
        emb = model_channels * channel_mult_emb
        noise = model_channels * channel_mult_noise
        block: dict[str, Any] = {
            "emb": emb,
            "dropout": dropout,
            "filter_taps": resample_filter,
            "channels_per_head": None if song else 64,
            "skip_scale": math.sqrt(0.5) if song else 1.0,
            "eps": 1e-6 if song else 1e-5,
            "always_project": song,
            "scale_shift": not song,
        }
        if embedding_type == "fourier":
            self.map_noise = FourierEmbedding(noise)
        else:
            self.map_noise = PositionalEmbedding(noise, endpoint=song)
        self.map_label = nn.Linear(label_dim, noise if song else emb, bias=song)
        if not label_dim:
            self.map_label = None
        self.map_augment = nn.Linear(augment_dim, noise, bias=False) if augment_dim else None
        self.map_layer0 = nn.Linear(noise, emb)
        self.map_layer1 = nn.Linear(emb, emb)

        self.enc = nn.ModuleDict()
        skips: list[int] = []
        channels = auxiliary = img_channels
        for level, mult in enumerate(channel_mult):
            res = img_resolution >> level
            name = f"{res}x{res}"
            if level == 0:
                outputs = model_channels * (1 if song else mult)
                self.enc[f"{name}_conv"] = Resample(img_channels, outputs, 3)
            else:
                outputs = channels
                self.enc[f"{name}_down"] = Block(channels, outputs, down=True, **block)
                if encoder_type == "residual":
                    self.enc[f"{name}_aux_residual"] = Resample(
                        auxiliary, outputs, 3, down=True, filter_taps=resample_filter, fuse=True
                    )
                    auxiliary = outputs
            channels = outputs
            skips.append(channels)
            for index in range(num_blocks):
                outputs = model_channels * mult
                attend = res in attn_resolutions
                self.enc[f"{name}_block{index}"] = Block(channels, outputs, attend=attend, **block)
                channels = outputs
                skips.append(channels)

        self.dec = nn.ModuleDict()
        for level, mult in reversed(list(enumerate(channel_mult))):
            res = img_resolution >> level
            name = f"{res}x{res}"
            if level == len(channel_mult) - 1:
                self.dec[f"{name}_in0"] = Block(channels, channels, attend=True, **block)
                self.dec[f"{name}_in1"] = Block(channels, channels, **block)
            else:
                self.dec[f"{name}_up"] = Block(channels, channels, up=True, **block)
            for index in range(num_blocks + 1):
                outputs = model_channels * mult
                attend = res in attn_resolutions and (index == num_blocks or not song)
                inputs = channels + skips.pop()
                self.dec[f"{name}_block{index}"] = Block(inputs, outputs, attend=attend, **block)
                channels = outputs
        norm, conv = GroupNorm(channels, block["eps"]), Resample(channels, img_channels, 3)
        if song:
            self.dec[f"{img_resolution}x{img_resolution}_aux_norm"] = norm
            self.dec[f"{img_resolution}x{img_resolution}_aux_conv"] = conv
        else:
            self.out_norm, self.out_conv = norm, conv
        self._initialise(conv)

    def _initialise(self, last: Resample) -> None:
        # residual branches and the output start near zero, so that every block starts near identity
        quiet = {id(last)}
        for module in self.modules():
            if isinstance(module, Block):
                quiet.add(id(module.conv1))
                if module.heads:
                    quiet.add(id(module.proj))
        for module in self.modules():
            if isinstance(module, nn.Linear | Resample) and module.weight is not None:
                nn.init.xavier_uniform_(module.weight)
                if id(module) in quiet:
                    module.weight.data.mul_(1e-5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def _embed(self, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        emb = self.map_noise(c_noise)
        if self.song:
            emb = emb.reshape(len(emb), 2, -1).flip(1).reshape(emb.shape)  # [sin, cos]
            if self.map_label is not None:
                assert labels is not None
                emb = emb + self.map_label(labels * math.sqrt(self.label_dim))
            return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))
        emb = self.map_layer1(F.silu(self.map_layer0(emb)))
        if self.map_label is not None:
            assert labels is not None
            emb = emb + self.map_label(labels)
        return F.silu(emb)

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """Raw output `[B, C, H, W]`; `c_noise [B]`; `labels [B, K]` one-hot, zeros for null."""
        emb = self._embed(c_noise, labels)
        skips: list[Tensor] = []
        auxiliary = x
        for name, module in self.enc.items():
            if name.endswith("aux_residual"):
                x = skips[-1] = auxiliary = (x + module(auxiliary)) / math.sqrt(2)
            else:
                x = module(x, emb) if isinstance(module, Block) else module(x)
                skips.append(x)
        for module in self.dec.values():
            if isinstance(module, Block):
                if x.shape[1] != module.inputs:
                    x = torch.cat([x, skips.pop()], 1)
                x = module(x, emb)
            elif isinstance(module, GroupNorm):
                x = F.silu(module(x))
            else:
                x = module(x)
        return x if self.song else self.out_conv(F.silu(self.out_norm(x)))
