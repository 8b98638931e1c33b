"""What PyTorch writes is read: networks in the style of torchvision's. Where PyTorch is: in the benchmarks' environment."""

import io

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is in the environment of the benchmarks only")
onnx = pytest.importorskip("onnx", minversion="1.17")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from nnlite.interop.onnx import from_onnx  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # its exporters warn of themselves


class Residual(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        return F.relu(self.second(self.first(x)) + (x if len(self.shortcut) == 0 else self.shortcut(x)))


class Joined(nn.Module):
    """Branches of a squeezenet or an inception; with all=True, of a DenseNet."""

    def __init__(self, *branches, all=False):
        super().__init__()
        self.branches, self.all = nn.ModuleList(branches), all

    def forward(self, x):
        if not self.all:
            return torch.cat([branch(x) for branch in self.branches], 1)
        values = [x]
        for branch in self.branches:
            values.append(branch(torch.cat(values, 1)))
        return torch.cat(values, 1)


class Tokens(nn.Module):
    """Images as tokens, a residual block of two Dense layers, their mean: LayerNorm and GELU as the opset writes them."""

    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        x = x.flatten(2).transpose(1, 2)
        return (x + self.down(F.gelu(self.up(self.norm(x))))).mean(1)


class Viewed(nn.Module):
    def forward(self, x):
        return x.view(x.size(0), -1)


def conv(inputs, outputs, size=3, **options):
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **options)


def pooled(*layers, features):
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, 5))


NETWORKS = {
    "vgg": lambda: nn.Sequential(
        conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), conv(8, 8), nn.ReLU(), nn.AdaptiveAvgPool2d((4, 4)),
        Viewed(), nn.Linear(128, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 5), nn.Softmax(1),
    ),
    "resnet": lambda: pooled(
        nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1), Residual(8, 8, 1),
        Residual(8, 16, 2), features=16,
    ),
    "squeezenet": lambda: pooled(
        nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True), Joined(conv(8, 4, 1), conv(8, 4)), features=8
    ),
    "densenet": lambda: pooled(Joined(conv(3, 4), conv(7, 4), conv(11, 4), all=True), nn.ReLU(), features=15),
    "convnext": lambda: nn.Sequential(conv(3, 8, 7), Tokens(), nn.LayerNorm(8), nn.Linear(8, 5)),
    "u-net": lambda: nn.Sequential(
        Joined(
            nn.Sequential(nn.MaxPool2d(2), conv(3, 6), nn.SiLU(), nn.Upsample(scale_factor=2)),
            nn.Sequential(conv(3, 4), nn.ELU()),
        ),
        conv(10, 2),
    ),
    "norms": lambda: pooled(
        conv(3, 8), nn.GroupNorm(2, 8), nn.PReLU(8), conv(8, 8), nn.InstanceNorm2d(8, affine=True), nn.LeakyReLU(0.1),
        features=8,
    ),
}  # fmt: skip


def settled(network):
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
        for values in module.parameters(recurse=False):
            values.data.add_(0.1 * torch.randn_like(values))
    return network.eval()


class OfIds(nn.Module):
    """A convolution over vectors of ids, and its largest values."""

    def __init__(self):
        super().__init__()
        self.vectors, self.conv, self.out = nn.Embedding(9, 4), nn.Conv1d(4, 6, 3, padding=1), nn.Linear(6, 5)

    def forward(self, x):
        y = F.relu(self.conv(self.vectors(x).transpose(1, 2)))
        return self.out(F.adaptive_max_pool1d(y, 1).flatten(1)) + self.out(y.amax(2))


@pytest.mark.parametrize("opset", [11, 20])
def test_exports_of_ids(opset):
    torch.manual_seed(0)
    network, x, file = settled(OfIds()), torch.randint(9, (3, 7)), io.BytesIO()
    torch.onnx.export(network, (x,), file, dynamo=False, opset_version=opset)
    model = from_onnx(onnx.load_from_string(file.getvalue()))
    np.testing.assert_allclose(model(x.numpy()), network(x).detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 20])
@pytest.mark.parametrize("name", NETWORKS)
def test_exports(name, opset):
    torch.manual_seed(0)
    network, x, file = settled(NETWORKS[name]()), torch.randn(3, 3, 16, 16), io.BytesIO()
    axes = {"x": {0: "n"}} if opset % 2 else None
    torch.onnx.export(network, (x,), file, dynamo=False, opset_version=opset, input_names=["x"], dynamic_axes=axes)
    agree(network, x, from_onnx(onnx.load_from_string(file.getvalue())))


@pytest.mark.parametrize("name", NETWORKS)
def test_exports_of_the_newer_exporter(name):
    pytest.importorskip("onnxscript", reason="PyTorch's newer exporter needs onnxscript")
    torch.manual_seed(0)
    network, x = settled(NETWORKS[name]()), torch.randn(3, 3, 16, 16)
    program = torch.onnx.export(network, (x,), dynamo=True, dynamic_shapes=({0: torch.export.Dim("n", min=2, max=9)},))
    agree(network, x, from_onnx(program.model_proto))


def agree(network, x, model):
    z = network(x).detach().numpy()
    z = z.transpose(0, 2, 3, 1) if z.ndim == 4 else z
    np.testing.assert_allclose(model(x.numpy().transpose(0, 2, 3, 1)), z, rtol=1e-4, atol=1e-5 * max(1, abs(z).max()))
