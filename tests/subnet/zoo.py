"""The bones of well-known networks, as their authors write them: small, but with every turn of the original.

None has a norm over several channels, so that a channel whose parameters are all zero stays zero (`test_zoo.py`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def cbr(
    read: int, written: int, size: int = 3, stride: int = 1, groups: int = 1, act: type = nn.ReLU
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(read, written, size, stride, size // 2, groups=groups, bias=False), nn.BatchNorm2d(written),
        act(inplace=True),
    )  # fmt: skip


class Pooled(nn.Module):
    """Features, global average, dropout, classifier."""

    def __init__(self, features: nn.Module, width: int) -> None:
        super().__init__()
        self.features = features
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.classifier = nn.Sequential(nn.Dropout(p=0.0), nn.Linear(width, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features(x))
        x = torch.flatten(x, 1)
        return self.classifier(x)


class Fire(nn.Module):
    def __init__(self, read: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze, self.act = nn.Conv2d(read, squeeze, 1), nn.ReLU(inplace=True)
        self.expand1x1, self.expand3x3 = (
            nn.Conv2d(squeeze, expand, 1),
            nn.Conv2d(squeeze, expand, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.squeeze(x))
        return torch.cat([self.act(self.expand1x1(x)), self.act(self.expand3x3(x))], 1)


class SqueezeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 12, 3), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, ceil_mode=True), Fire(12, 4, 8),
            Fire(16, 4, 8),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Dropout(p=0.0), nn.Conv2d(16, 5, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d((1, 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(self.classifier(self.features(x)), 1)


class Inverted(nn.Module):
    """MobileNetV3 / EfficientNet: expand, depthwise, squeeze-excite as convolutions, project, maybe add."""

    def __init__(self, read: int, wide: int, written: int, stride: int) -> None:
        super().__init__()
        self.use_res_connect = stride == 1 and read == written
        self.expand = cbr(read, wide, 1, act=nn.Hardswish)
        self.depthwise = cbr(wide, wide, 5, stride, groups=wide, act=nn.SiLU)
        self.avgpool, self.fc1, self.fc2 = (
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(wide, 4, 1),
            nn.Conv2d(4, wide, 1),
        )
        self.activation, self.scale_activation = nn.ReLU(), nn.Hardsigmoid()
        self.project = nn.Sequential(nn.Conv2d(wide, written, 1, bias=False), nn.BatchNorm2d(written))

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(self.expand(x))
        y = self.scale_activation(self.fc2(self.activation(self.fc1(self.avgpool(y))))) * y
        y = self.project(y)
        if self.use_res_connect:
            y += x
        return y


def mobilenet() -> nn.Module:
    blocks = Inverted(8, 16, 8, 1), Inverted(8, 24, 12, 2), Inverted(12, 24, 12, 1)
    return Pooled(nn.Sequential(cbr(3, 8), *blocks, cbr(12, 20, 1)), 20)


class DenseLayer(nn.Module):
    """As in torchvision: takes the list of all earlier features."""

    def __init__(self, read: int) -> None:
        super().__init__()
        self.norm1, self.relu1, self.conv1 = (
            nn.BatchNorm2d(read),
            nn.ReLU(inplace=True),
            nn.Conv2d(read, 8, 1),
        )
        self.norm2, self.relu2, self.conv2 = (
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 6, 3, padding=1),
        )
        self.drop_rate = 0.0

    def forward(self, inputs: list[Tensor]) -> Tensor:
        bottleneck = self.conv1(self.relu1(self.norm1(torch.cat(inputs, 1))))
        new = self.conv2(self.relu2(self.norm2(bottleneck)))
        return F.dropout(new, p=self.drop_rate, training=self.training) if self.drop_rate > 0 else new


class DenseBlock(nn.ModuleDict):
    def __init__(self, layers: int, read: int) -> None:
        super().__init__()
        for i in range(layers):
            self.add_module(f"denselayer{i + 1}", DenseLayer(read + 6 * i))

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for _, layer in self.items():
            features.append(layer(features))
        return torch.cat(features, 1)


class Bottleneck(nn.Module):
    """ResNeXt with a pre-activation shortcut; `downsample` as in torchvision."""

    def __init__(self, read: int, width: int, written: int, groups: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(read, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, groups=groups, bias=False)
        self.bn2, self.conv3 = nn.BatchNorm2d(width), nn.Conv2d(width, written, 1, bias=False)
        self.bn3, self.relu = nn.BatchNorm2d(written), nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or read != written:
            self.downsample = nn.Sequential(
                nn.Conv2d(read, written, 1, stride, bias=False), nn.BatchNorm2d(written)
            )

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(out)))))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class Inception(nn.Module):
    def __init__(self, read: int) -> None:
        super().__init__()
        self.branch1 = cbr(read, 6, 1)
        self.branch2 = nn.Sequential(cbr(read, 4, 1), cbr(4, 8))
        self.branch3 = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1, ceil_mode=True), cbr(read, 4, 1))

    def _forward(self, x: Tensor) -> list[Tensor]:
        return [self.branch1(x), self.branch2(x), self.branch3(x)]

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(self._forward(x), 1)


class UNet(nn.Module):
    """Encoder, decoder, skips that are padded to fit, one score a pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.inc, self.down1, self.down2 = cbr(3, 6), cbr(6, 8), cbr(8, 12)
        self.pool = nn.MaxPool2d(2)
        self.up2, self.conv2 = nn.ConvTranspose2d(12, 8, 2, stride=2), cbr(16, 8)
        self.up1, self.conv1 = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), cbr(14, 6)
        self.outc = nn.Conv2d(6, 2, 1)

    def _join(self, x1: Tensor, x2: Tensor) -> Tensor:
        dy, dx = x2.size()[2] - x1.size()[2], x2.size()[3] - x1.size()[3]
        x1 = F.pad(x1, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])
        return torch.cat([x2, x1], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.inc(x)
        x2 = self.down1(self.pool(x1))
        x3 = self.down2(self.pool(x2))
        x = self.conv2(self._join(self.up2(x3), x2))
        return self.outc(self.conv1(self._join(self.up1(x), x1)))


class Res2(nn.Module):
    """Res2Net: pieces of a split, each added to the next before its own convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.merge = cbr(3, 16, 1), nn.Conv2d(16, 8, 1)
        self.convs = nn.ModuleList(cbr(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        spx = torch.split(self.stem(x), 4, 1)
        outs, sp = [spx[0]], None
        for i, conv in enumerate(self.convs):
            sp = conv(spx[i + 1] if sp is None else sp + spx[i + 1])
            outs.append(sp)
        return self.merge(torch.cat(outs, 1))


class CrossStage(nn.Module):
    """YOLO's C2f: halves of a convolution, one goes through bottlenecks, all are joined."""

    def __init__(self) -> None:
        super().__init__()
        self.cv1, self.cv2 = cbr(3, 12, 1, act=nn.SiLU), cbr(24, 8, 1, act=nn.SiLU)
        self.m = nn.ModuleList(nn.Sequential(cbr(6, 6), cbr(6, 6)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.cv1(x).chunk(2, 1)
        y = [a, b]
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class Fusion(nn.Module):
    """HRNet: two resolutions that exchange; every stream has three writers."""

    def __init__(self) -> None:
        super().__init__()
        self.high, self.low = cbr(3, 6), cbr(3, 8, stride=2)
        self.up, self.down = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.head = nn.Conv2d(14, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        high, low = self.high(x), self.low(x)
        fused = high + F.interpolate(self.up(low), size=high.shape[2:], mode="nearest")
        low = torch.relu(low + self.down(high))
        both = torch.cat([F.avg_pool2d(fused.relu(), 2), low], 1)
        return self.head(both).flatten(2).sum(-1)


class Ghost(nn.Module):
    """GhostNet: cheap depthwise copies joined to their originals, cut to the width that was asked for."""

    def __init__(self, read: int, written: int) -> None:
        super().__init__()
        self.written = written
        self.primary_conv, self.cheap = cbr(read, 8), cbr(8, 8, groups=8)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.primary_conv(x)
        x2 = self.cheap(x1)
        return torch.cat([x1, x2], dim=1)[:, : self.written, :, :]


class Selective(nn.Module):
    """Selective kernels: a gate of two branches, from their sum, by a sigmoid each; and a sum to one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = cbr(3, 8), cbr(3, 8, 5)
        self.fc, self.fcs = nn.Linear(8, 4), nn.ModuleList(nn.Linear(4, 8) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        s = (a + b).mean(-1).mean(-1)
        z = F.relu(self.fc(s))
        va, vb = (fc(z).sigmoid().unsqueeze(-1).unsqueeze(-1) for fc in self.fcs)
        total = va + vb + 1e-3
        return (a * va + b * vb) / total.expand_as(a)


class WideBasic(nn.Module):
    """Pre-activation: norm and ReLU come first, the shortcut branches off behind them."""

    def __init__(self, read: int, written: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(read), nn.Conv2d(read, written, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(written), nn.Conv2d(written, written, 3, 1, 1, bias=False)
        self.dropout, self.gain = nn.Dropout2d(0.0), nn.Parameter(torch.full((1,), 0.7))
        self.shortcut = nn.Sequential()
        if read != written or stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(read, written, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(x))
        out = self.conv2(self.dropout(F.relu(self.bn2(self.conv1(y)))))
        return out * self.gain + self.shortcut(y if len(self.shortcut) else x)


class VGG(nn.Module):
    """Configured by a list, flattened by `view`, three linear layers."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        read = 3
        for width in (6, "M", 8, 8, "M"):
            if width == "M":
                layers += [nn.MaxPool2d(kernel_size=2, stride=2)]
            else:
                layers += [
                    nn.Conv2d(read, width, kernel_size=3, padding=1),
                    nn.BatchNorm2d(width),
                    nn.ReLU(True),
                ]
                read = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(8 * 4, 12), nn.Tanh(), nn.Linear(12, 12), nn.GELU(), nn.Linear(12, 5)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.classifier(x.view(x.size(0), -1))


class WaveNet(nn.Module):
    """One dimension: dilated convolutions with gates, skips that are summed (WaveNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(2, 8, 1)
        self.dilated = nn.ModuleList(nn.Conv1d(8, 12, 2, dilation=2**i) for i in range(2))
        self.residual = nn.ModuleList(nn.Conv1d(6, 8, 1) for _ in range(2))
        self.skip = nn.ModuleList(nn.Conv1d(6, 10, 1) for _ in range(2))
        self.skip_all, self.last = nn.Conv1d(8, 10, 1), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.first(x), 0
        for dilated, residual, skip in zip(self.dilated, self.residual, self.skip, strict=True):
            y = dilated(F.pad(x, (dilated.dilation[0], 0)))
            value, gate = y.chunk(2, dim=1)
            y = torch.tanh(value) * torch.sigmoid(gate)
            total = total + skip(y)
            x = x + residual(y)
        return self.last(F.relu(total + self.skip_all(x)).mean(dim=2))


ZOO = {
    "squeezenet": (SqueezeNet, (3, 8, 8)),
    "mobilenet": (mobilenet, (3, 8, 8)),
    "densenet": (lambda: Pooled(nn.Sequential(cbr(3, 8), DenseBlock(3, 8), nn.AvgPool2d(2), cbr(26, 8)), 8), (3, 6, 6)),
    "resnext": (
        lambda: Pooled(nn.Sequential(cbr(3, 8), Bottleneck(8, 16, 12, 4, 2), Bottleneck(12, 16, 12, 4, 1)), 12),
        (3, 8, 8),
    ),
    "inception": (lambda: Pooled(nn.Sequential(Inception(3), Inception(18)), 18), (3, 6, 6)),
    "unet": (UNet, (3, 10, 9)),
    "res2net": (lambda: Pooled(Res2(), 8), (3, 5, 5)),
    "c2f": (lambda: Pooled(CrossStage(), 8), (3, 5, 5)),
    "hrnet": (Fusion, (3, 8, 8)),
    "ghostnet": (lambda: Pooled(nn.Sequential(Ghost(3, 12), Ghost(12, 16)), 16), (3, 5, 5)),
    "selective": (lambda: Pooled(Selective(), 8), (3, 5, 5)),
    "wide-resnet": (
        lambda: Pooled(nn.Sequential(nn.Conv2d(3, 8, 3), WideBasic(8, 12, 2), WideBasic(12, 12, 1)), 12), (3, 8, 8)
    ),
    "vgg": (VGG, (3, 8, 8)),
    "wavenet": (WaveNet, (2, 9)),
}  # fmt: skip
"""Name to (constructor, shape of one input)."""
