"""Networks of other people, what gates find in them, and a trial that attaches gates to one and takes them off.

Every number is worked out by hand from the architecture, as ``why`` says; ``scripts/attach_table.py`` makes the table
of docs/attach.md from these cases.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from excite.surgery import attach_, attached, detach_, survey, verify


@dataclass(frozen=True)
class Case:
    """A network and a kind of place, with what is there.

    Args:
        library: "torchvision", "timm", "smp", or "own" for those written below.
        name: the network's, in its library.
        where: the places asked for.
        joins: residual additions, by the architecture.
        why: how these are counted.
        sites: places that take a gate.
        at: what each site is, as "module/side"; patterns, of which each site matches one.
        refused: places that take none.
        reason: words of each refusal.
        told: the reason in a few words, for the page.
        size: of the images.
        slow: whether its trial takes about a second or more.
    """

    library: str
    name: str
    where: str
    joins: int
    why: str
    sites: int
    at: tuple[str, ...] = ()
    refused: int = 0
    reason: str = ""
    told: str = ""
    size: int = 64
    slow: bool = False

    def __str__(self) -> str:
        return f"{self.library}-{self.name}-{self.where.partition(':')[0]}"


def _has(library: str, name: str, joins: int, why: str, at: str, *, size: int = 64, slow: bool = False) -> Case:
    """A network all of whose residual additions take a gate."""
    return Case(library, name, "residual", joins, why, joins, tuple(at.split()), size=size, slow=slow)


def _none(library: str, name: str, joins: int, why: str, gate: str) -> Case:
    """A network with a gate of its own at each addition."""
    reason = f"({gate}) stands there already"
    return Case(library, name, "residual", joins, why, 0, (), joins, reason, f"its own {gate} stands there")


# 2, 2, 3, 3 and 3 times convolution, norm, ReLU, with a pool after each group.
VGG16_RELUS = tuple(f"features.{i}/out" for i in (2, 5, 9, 12, 16, 19, 22, 26, 29, 32, 36, 39, 42))
BOTTLENECKS = "layer1-4 have 3 + 4 + 6 + 3 bottlenecks"

CASES = (
    _has("torchvision", "resnet18", 8, "layer1-4 have 2 basic blocks each", "layer[1-4].[01].bn2/out"),
    _has("torchvision", "resnet50", 16, BOTTLENECKS, "layer?.?.bn3/out"),
    _has("torchvision", "resnext50_32x4d", 16, BOTTLENECKS, "layer?.?.bn3/out", slow=True),
    _has("torchvision", "wide_resnet50_2", 16, BOTTLENECKS, "layer?.?.bn3/out", slow=True),
    Case("torchvision", "vgg16_bn", "conv", 0, "a chain of 13 convolutions", 13, VGG16_RELUS, slow=True),
    Case(
        "torchvision",
        "densenet121",
        "block:features.denseblock*.*",
        0,
        "concatenations; 6 + 12 + 24 + 16 dense layers",
        58,
        ("features.denseblock?.denselayer*/out",),
        slow=True,
    ),
    _has(
        "torchvision",
        "mobilenet_v2",
        10,
        "repeats 1, 2, 3, 4, 3, 3, 1: all but each group's first have a shortcut",
        "features.*.conv.3/out",
    ),
    _has(
        "torchvision",
        "mobilenet_v3_large",
        10,
        "of 15 blocks 10 keep stride and width: 1 of 16, 1 of 24, 2 of 40, 3 of 80, 1 of 112, 2 of 160 channels",
        "features.1.block.1.1/out features.*.block.[23].1/out",
    ),
    _has(
        "torchvision",
        "efficientnet_b0",
        9,
        "repeats 1, 2, 2, 3, 3, 4, 1: all but each group's first",
        "features.?.?.block.3.1/out",
    ),
    _has("torchvision", "convnext_tiny", 18, "3 + 3 + 9 + 3 blocks", "features.[1357].*.block.6/out"),
    _has("torchvision", "regnet_y_400mf", 16, "16 blocks, each with a shortcut", "trunk_output.block?.*.f.c.1/out"),
    Case(
        "torchvision",
        "shufflenet_v2_x1_0",
        "block:stage*.*",
        0,
        "units of 4 + 8 + 4 that concatenate",
        16,
        ("stage[234].?/out",),
    ),
    Case(
        "torchvision",
        "inception_v3",
        "block:Mixed_*",
        0,
        "3 + 1 + 4 + 1 + 2 modules that concatenate",
        11,
        ("Mixed_*/out",),
        size=96,
        slow=True,
    ),
    Case(
        "torchvision",
        "googlenet",
        "block:inception*",
        0,
        "2 + 5 + 2 modules that concatenate",
        9,
        ("inception??/out",),
        slow=True,
    ),
    _has("torchvision", "mnasnet1_0", 10, "repeats 3, 3, 3, 2, 4, 1: all but each's first", "layers.*.*.layers.7/out"),
    _has("timm", "resnet50", 16, BOTTLENECKS, "layer?.?.bn3/out", slow=True),
    _has("timm", "resnet50d", 16, BOTTLENECKS, "layer?.?.bn3/out", slow=True),
    _none("timm", "seresnet50", 16, BOTTLENECKS, "SEModule"),
    Case("timm", "seresnet50", "post", 16, BOTTLENECKS, 16, ("layer?.?/out",), slow=True),
    _has("timm", "resnetv2_50", 16, "3 + 4 + 6 + 3 bottlenecks", "stages.?.blocks.?.conv3/out", slow=True),
    _has("timm", "nf_resnet50", 16, "3 + 4 + 6 + 3 bottlenecks", "stages.?.?.conv3/out", slow=True),
    _has("timm", "convnext_tiny", 18, "3 + 3 + 9 + 3 blocks", "stages.?.blocks.?.drop_path/out"),
    _has(
        "timm",
        "dla34",
        12,
        "trees of 2, 4, 4 and 2 basic blocks; their roots concatenate",
        "level[2-5].tree?.bn2/out level[34].tree?.tree?.bn2/out",
    ),
    _has(
        "timm",
        "hrnet_w18_small",
        23,
        "1 bottleneck; 2 basic blocks on each of 2, 3, 4 branches; 4 bottlenecks widen the outputs. Sums over "
        "resolutions are no joins",
        "layer1.0.bn3/out stage?.0.branches.?.?.bn2/out incre_modules.?.0.bn3/out",
    ),
    _has(
        "timm", "res2net50_26w_4s", 16, BOTTLENECKS + "; sums inside them are no joins", "layer?.?.bn3/out", slow=True
    ),
    _none("timm", "ese_vovnet39b", 2, "stages of 1, 1, 2, 2 blocks: all but each's first", "EffectiveSEModule"),
    Case("timm", "ese_vovnet39b", "post", 2, "as above", 2, ("stages.[23].blocks.1/out",), slow=True),
    _has("timm", "darknet53", 23, "1 + 2 + 8 + 8 + 4 blocks", "stages.?.blocks.?.conv2/out", slow=True),
    _has("timm", "cspresnet50", 13, "3 + 3 + 5 + 2 bottlenecks", "stages.?.blocks.?.conv3/out", slow=True),
    _has(
        "timm",
        "repvgg_a0",
        17,
        "an identity branch in all but each first of 2, 4, 14, 1 blocks; the sum of two convolutions is no join",
        "stages.?.*.drop_path/out",
        slow=True,
    ),
    _none("timm", "dm_nfnet_f0", 12, "1 + 2 + 6 + 3 blocks", "SEModule"),
    Case("timm", "dm_nfnet_f0", "post", 12, "1 + 2 + 6 + 3 blocks", 12, ("stages.?.?/out",), slow=True),
    _has("timm", "xception41", 12, "3 + 8 + 1 blocks, and one without shortcut", "blocks.*.stack.conv3/out", slow=True),
    _has(
        "smp",
        "Unet",
        16,
        "a ResNet-34 encoder, 3 + 4 + 6 + 3 basic blocks; the decoder concatenates",
        "encoder.layer?.?.bn2/out",
    ),
    _has("own", "resnet1d", 4, "2 stages of 2 basic blocks", "layers.*.norm2/out"),
    _has("own", "resnet3d", 4, "2 stages of 2 basic blocks", "layers.*.norm2/out", size=16),
)


# --- networks of one and three spatial axes ---


class BasicBlock(nn.Module):
    def __init__(self, axes: int, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        conv, norm = CONVS[axes], NORMS[axes]
        self.conv1 = conv(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = norm(outputs)
        self.conv2 = conv(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = norm(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(conv(inputs, outputs, 1, stride, bias=False), norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """Over signals, images or volumes, for 10 classes."""

    def __init__(self, axes: int) -> None:
        super().__init__()
        widths = [(16, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1)]
        self.stem = nn.Sequential(CONVS[axes](3, 16, 3, padding=1, bias=False), NORMS[axes](16), nn.ReLU())
        self.layers = nn.Sequential(*(BasicBlock(axes, *width) for width in widths))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.stem(x)).flatten(2).mean(2))


CONVS: dict[int, Callable[..., nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS: dict[int, Callable[..., nn.Module]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
OWN = {"resnet1d": 1, "resnet3d": 3}


# --- making them ---


class WithoutDraws(TorchFunctionMode):
    """Leaves out drawing: into tensors without storage it changes nothing, and takes torch long."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return args[0] if func in (Tensor.normal_, Tensor.uniform_) else func(*args, **(kwargs or {}))


def on_meta(case: Case) -> nn.Module:
    """The network of a case, without storage."""
    # RegNet works out its widths with tensors.
    with torch.device("cpu" if case.name.startswith("regnet") else "meta"), WithoutDraws():
        return made(case).to("meta")


def made(case: Case) -> nn.Module:
    """The network of a case."""
    if case.library == "torchvision":
        import torchvision

        options = {"init_weights": False} if case.name in ("inception_v3", "googlenet") else {}
        return torchvision.models.get_model(case.name, **options)
    if case.library == "timm":
        import timm

        return timm.create_model(case.name)
    if case.library == "smp":
        import segmentation_models_pytorch as smp

        return smp.Unet("resnet34", encoder_weights=None)
    return ResNet(OWN[case.name])


def images(case: Case, n: int = 2) -> Tensor:
    """Noise of a case's size."""
    axes = OWN.get(case.name, 2)
    return torch.randn(n, 3, *[case.size] * axes, generator=torch.Generator().manual_seed(1))


def randomised(model: nn.Module, x: Tensor) -> nn.Module:
    """A network on the meta device, put on the CPU in eval mode with everything random.

    Norms' statistics fit the maps that they get, up to a shift and a factor: through norms that fit nothing the signal
    of a deep network ends. Zeros that a fresh network has in its last norms would hide whatever a gate does.
    """
    generator = torch.Generator().manual_seed(0)
    state = model.state_dict()
    assert {name for name, _ in model.named_buffers()} <= state.keys(), "some buffers would stay unwritten"
    model = model.to_empty(device="cpu").eval()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if not tensor.is_floating_point():
                tensor.fill_(7)
            elif tensor.dim() > 1 and tensor.numel() > tensor.shape[1]:
                tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=generator)
            else:
                tensor.uniform_(0.4, 1.2, generator=generator)

    def fit(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        var, mean = torch.var_mean(args[0], [i for i in range(args[0].dim()) if i != 1])
        norm.running_mean.copy_(mean + 0.3 * torch.randn(mean.shape, generator=generator) * var.sqrt())
        norm.running_var.copy_((0.5 + 1.5 * torch.rand(var.shape, generator=generator)) * var + 1e-3)

    norms = [m for m in model.modules() if isinstance(getattr(m, "running_mean", None), Tensor)]
    hooks = [norm.register_forward_pre_hook(fit) for norm in norms]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return model


# --- the trial ---


@dataclass(frozen=True)
class Found:
    """What a trial has found: numbers as a case has them, and whether outputs and keys were exactly kept."""

    joins: int
    sites: int
    refused: int
    exact_attached: bool | None
    exact_detached: bool | None


def expected(case: Case) -> Found:
    """What a trial is to find; nothing can be exact where there is no site."""
    exact = True if case.sites else None
    return Found(case.joins, case.sites, case.refused, exact, exact)


def tried(case: Case) -> Found:
    """Attach neutral gates to the network of a case, run it, take them off, run it again."""
    x = images(case)
    model = on_meta(case)
    found = survey(model, x, where=case.where)
    places = [f"{site.module}/{site.side}" for site in found.sites]
    strange = [place for place in places if not any(fnmatchcase(place, pattern) for pattern in case.at)]
    assert not strange, f"no such places were meant: {strange}"
    assert len(set(places)) == len(places)
    assert all(case.reason and case.reason in refusal.reason for refusal in found.refused), found.refused
    if not found.sites:
        return Found(found.joins, 0, len(found.refused), None, None)
    model = randomised(model, x)
    keys = list(model.state_dict())
    classes = [type(module) for module in model.modules()]
    with torch.no_grad():
        y = model(x)
        assert (y[0] - y[1]).abs().max() > 1e-3 * y.abs().max(), "the images are not told apart"
        sites = attach_(model, "se", x, where=case.where)
        assert sites == list(found.sites) and len(verify(model)) == len(sites)
        attached_keys = list(model.state_dict())
        same = torch.equal(model(x), y)
        kept = [key for key in attached_keys if key in set(keys)] == keys
        new = all(".excite_gate" in key for key in set(attached_keys) - set(keys))
        _move(model)
        assert not torch.equal(model(x), y), "gates do nothing"
        detach_(model)
        exact_detached = torch.equal(model(x), y) and list(model.state_dict()) == keys
    assert [type(module) for module in model.modules()] == classes
    assert not attached(model) and not any(vars(m).get("_excite_attached") for m in model.modules())
    return Found(found.joins, len(sites), len(found.refused), same and kept and new, exact_detached)


def _move(model: nn.Module) -> None:
    for item in attached(model):
        for parameter in model.get_submodule(item.name).parameters():
            parameter.add_(0.1)
