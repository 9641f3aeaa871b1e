"""The class-conditional DDPM UNet (arXiv 2006.11239) that SA, SalUn and the published SFD share.

Parameter names and conventions are those of the published CIFAR-10 and STL-10 checkpoints.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class _Embedding(nn.Module):
    """Two linear maps with SiLU between them, under the name `dense`."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.dense = nn.ModuleList([nn.Linear(inputs, outputs), nn.Linear(outputs, outputs)])

    def forward(self, x: Tensor) -> Tensor:
        return self.dense[1](F.silu(self.dense[0](x)))


class _ResBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, emb: int, dropout: float):
        super().__init__()
        self.norm1 = _norm(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.temb_cemb_proj = nn.Linear(emb, outputs)
        self.norm2 = _norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.dropout = dropout
        self.nin_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x))) + self.temb_cemb_proj(F.silu(emb))[:, :, None, None]
        y = self.conv2(F.dropout(F.silu(self.norm2(y)), self.dropout, self.training))
        return y + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class _Attention(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (conv(y).flatten(2).float() for conv in (self.q, self.k, self.v))
        weights = (q.transpose(1, 2) @ k / math.sqrt(x.shape[1])).softmax(2)
        return x + self.proj_out((v @ weights.transpose(1, 2)).reshape(x.shape).to(x.dtype))


class _Resample(nn.Module):
    def __init__(self, channels: int, up: bool):
        super().__init__()
        self.up = up
        self.conv = nn.Conv2d(channels, channels, 3, 1 if up else 2, padding=1 if up else 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0) if self.up else F.pad(x, (0, 1, 0, 1)))


class _Level(nn.Module):
    """The blocks of one resolution, under the names `block`, `attn` and the resampling's."""

    def __init__(self, blocks: list[nn.Module], attn: list[nn.Module]):
        super().__init__()
        self.block, self.attn = nn.ModuleList(blocks), nn.ModuleList(attn)

    def resample(self, x: Tensor) -> Tensor:
        """Up or down to the next level's resolution, where there is one."""
        for name in ("downsample", "upsample"):
            if name in self._modules:
                x = self.get_submodule(name)(x)
        return x

    def step(self, index: int, x: Tensor, emb: Tensor) -> Tensor:
        x = self.block[index](x, emb)
        return self.attn[index](x) if len(self.attn) else x


class DDPMUNet(nn.Module):
    """The noise prediction eps(x_t, t, class): `x [B, 3, H, W]`, `t [B]`, `labels [B, K]` one-hot.

    A row of zeros in `labels` is the dropped class. `ch_mult` one factor a level, finest first.
    """

    def __init__(
        self,
        *,
        ch: int = 128,
        ch_mult: Sequence[int] = (1, 2, 2, 2),
        num_res_blocks: int = 2,
        attn_resolutions: Sequence[int] = (16,),
        image_size: int = 32,
        n_classes: int = 10,
        in_channels: int = 3,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.ch, self.n_classes = ch, n_classes
        emb = 4 * ch
        self.null_classes_emb = nn.Parameter(torch.randn(ch))
        self.temb, self.cemb = _Embedding(ch, emb), _Embedding(ch, emb)
        self.classes_emb = nn.Embedding(n_classes, ch)
        self.conv_in = nn.Conv2d(in_channels, ch, 3, padding=1)

        def level(pairs: list[tuple[int, int]], res: int) -> _Level:
            attn = [_Attention(out) for _, out in pairs] if res in attn_resolutions else []
            return _Level([_ResBlock(i, o, 2 * emb, dropout) for i, o in pairs], list(attn))

        skips, channels, last = [ch], ch, len(ch_mult) - 1
        self.down = nn.ModuleList()
        for index, mult in enumerate(ch_mult):
            pairs = []
            for _ in range(num_res_blocks):
                pairs.append((channels, ch * mult))
                channels = ch * mult
                skips.append(channels)
            module = level(pairs, image_size >> index)
            if index != last:
                module.downsample = _Resample(channels, up=False)
                skips.append(channels)
            self.down.append(module)
        self.mid = nn.ModuleDict(
            {
                "block_1": _ResBlock(channels, channels, 2 * emb, dropout),
                "attn_1": _Attention(channels),
                "block_2": _ResBlock(channels, channels, 2 * emb, dropout),
            }
        )
        levels: list[nn.Module] = []
        for index, mult in reversed(list(enumerate(ch_mult))):
            pairs = []
            for _ in range(num_res_blocks + 1):
                pairs.append((channels + skips.pop(), ch * mult))
                channels = ch * mult
            module = level(pairs, image_size >> index)
            if index:
                module.upsample = _Resample(channels, up=True)
            levels.insert(0, module)
        self.up = nn.ModuleList(levels)
        self.norm_out = _norm(channels)
        self.conv_out = nn.Conv2d(channels, in_channels, 3, padding=1)

    def _embed(self, t: Tensor, labels: Tensor) -> Tensor:
        half = self.ch // 2
        steps = torch.arange(half, dtype=torch.float32, device=t.device)
        angle = torch.outer(t.float(), torch.exp(-math.log(10000) / (half - 1) * steps))
        time = self.temb(torch.cat([angle.sin(), angle.cos()], 1))
        # linear in the label, so that a search over continuous labels sees a gradient
        kept = labels.sum(1, keepdim=True)
        classes = labels @ self.classes_emb.weight + (1 - kept) * self.null_classes_emb
        return torch.cat([time, self.cemb(classes)], 1)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """eps `[B, C, H, W]`."""
        emb = self._embed(t, labels)
        x = self.conv_in(x)
        skips = [x]
        for level in self.down:
            assert isinstance(level, _Level)
            for index in range(len(level.block)):
                x = level.step(index, x, emb)
                skips.append(x)
            if level is not self.down[-1]:
                x = level.resample(x)
                skips.append(x)
        x = self.mid["block_2"](self.mid["attn_1"](self.mid["block_1"](x, emb)), emb)
        for number in reversed(range(len(self.up))):
            level = self.up[number]
            assert isinstance(level, _Level)
            for index in range(len(level.block)):
                x = level.step(index, torch.cat([x, skips.pop()], 1), emb)
            if number:
                x = level.resample(x)
        return self.conv_out(F.silu(self.norm_out(x)))
