"""Attached gates stand where a network built with gates has them: same outputs and gradients, in float64."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from excite.gates import parse_gate
from excite.models import VGG
from excite.models.resnet import BasicBlock, Bottleneck, ResNet
from excite.surgery import attach_, find_sites, survey
from tolerances import PARITY

CLOSE = PARITY[torch.float64]
THEIRS = {BasicBlock: torchvision.models.resnet.BasicBlock, Bottleneck: torchvision.models.resnet.Bottleneck}
# The paper's names of places, and the sites' of the same.
PLACES = {"standard": "residual", "pre": "pre", "post": "post", "inner": "inner", "identity": "identity"}


def lively(model):
    """Every number drawn, as norms of fresh networks hold zeros and ones that hide mistakes."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif tensor.dim() == 1:
                tensor.uniform_(-0.4, 1.2)
    return model


def with_weights_of(theirs, sites, ours):
    """Give ours the weights of theirs, gates by the label of their site."""
    state = dict(theirs.state_dict())
    for site in sites:
        block = ".".join(site.label.split(".")[:2])  # of an inner gate the label is its convolution
        own = "excite_gate" if site.side == "out" else "excite_gate_in"
        for key in [key for key in state if key.startswith(f"{site.module}.{own}.")]:
            state[f"{block}.gate.{key.rpartition(own + '.')[2]}"] = state.pop(key)
    ours.load_state_dict(state)
    return ours


def check_parity(theirs, ours, x):
    """Outputs, statistics and all gradients are equal, in training and in eval mode."""
    for training in (True, False):
        results = []
        for model in (theirs, ours):
            model.train(training).zero_grad()
            torch.manual_seed(3)
            image = x.clone().requires_grad_()
            y = model(image)
            y.square().sum().backward()
            gradients = sorted((tuple(p.shape), p.grad.norm()) for p in model.parameters())
            statistics = sorted((tuple(b.shape), b.double().norm()) for b in model.buffers())
            results.append((y, image.grad, [n for _, n in gradients], [n for _, n in statistics]))
        torch.testing.assert_close(results[0], results[1], **CLOSE)
        assert results[0][1].abs().max() > 0


@pytest.mark.parametrize("block, depths", [(BasicBlock, (2, 1, 1, 1)), (Bottleneck, (2, 1, 1, 1))])
@pytest.mark.parametrize("placement", ["standard", "pre", "post", "inner"])
def test_a_resnet_with_gates_attached_is_ours_built_with_them(block, depths, placement):
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    theirs = torchvision.models.ResNet(THEIRS[block], list(depths), num_classes=7).double()
    ours = ResNet(block, depths, gate=parse_gate("se"), placement=placement, num_classes=7).double()
    sites = attach_(theirs, "se", x, where=PLACES[placement], start="paper")
    blocks = [".".join(site.module.split(".")[:2]) for site in sites]
    assert blocks == ["layer1.0", "layer1.1", "layer2.0", "layer3.0", "layer4.0"]
    assert [site.stage for site in sites] == [1, 1, 2, 3, 4]
    check_parity(theirs, with_weights_of(lively(theirs), sites, ours), x)


def test_a_gate_on_the_shortcut_stands_behind_its_projection():
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    theirs = torchvision.models.ResNet(THEIRS[Bottleneck], [1, 1, 1, 1], num_classes=7).double()
    ours = ResNet(Bottleneck, (1, 1, 1, 1), gate=parse_gate("se"), placement="identity", num_classes=7).double()
    sites = attach_(theirs, "se", x, where="identity", start="paper")
    check_parity(theirs, with_weights_of(lively(theirs), sites, ours), x)


@pytest.mark.parametrize("stages", [(1,), (2, 4)])
def test_stages_are_those_of_our_networks(stages):
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    theirs = torchvision.models.ResNet(THEIRS[BasicBlock], [1, 1, 1, 1], num_classes=7).double()
    ours = ResNet(BasicBlock, (1, 1, 1, 1), gate=parse_gate("eca"), stages=stages, num_classes=7).double()
    sites = attach_(theirs, "eca", x, start="paper", stages=stages)
    check_parity(theirs, with_weights_of(lively(theirs), sites, ours), x)


def test_gates_in_vgg_follow_each_relu():
    features = torchvision.models.vgg.make_layers([64, "M", 128, "M", 256, "M", 512, "M", 512, "M"], batch_norm=True)
    with torch.device("meta"):  # the linear layers have 120 million parameters: smaller ones in their place
        theirs = torchvision.models.VGG(features, num_classes=7, init_weights=False)
    theirs.classifier = nn.Sequential(
        nn.Linear(512 * 49, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 7)
    )
    theirs.double()
    options = VGG.Options(hidden_features=16)
    ours = VGG((1, 1, 1, 1, 1), gate=parse_gate("se"), num_classes=7, options=options).double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    sites = attach_(theirs, "se", x, where="conv", start="paper")
    assert [site.stage for site in sites] == [1, 2, 3, 4, 5]
    state = {}
    for key, value in lively(theirs).state_dict().items():
        state[key.replace("excite_gate", "gate")] = value
    ours.load_state_dict(state)
    check_parity(theirs, ours, x)


# --- drop path and layer scale ---


def test_a_gate_stands_before_drop_path_that_is_a_module():
    """timm's ConvNeXt multiplies by its layer scale in the block, and drops paths in a module."""
    x = torch.randn(4, 3, 64, 64)
    model = timm.models.ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8), num_classes=3, drop_path_rate=0.9)
    sites = attach_(model, "se", x, start="paper")
    # The first block's rate is 0: an identity.
    assert [site.side for site in sites] == ["out", "in", "in", "in"]
    model.train()
    seen = {}
    drop = model.stages[3].blocks[0].drop_path
    drop.register_forward_hook(lambda module, args, y: seen.update(given=args[0], dropped=y))
    gate = drop.excite_gate_in
    gate.register_forward_hook(lambda module, args, y: seen.update(ungated=args[0], gated=y))
    model(x)
    assert torch.equal(seen["given"], seen["gated"])
    dropped = [bool((image == 0).all()) for image in seen["dropped"]]
    assert any(dropped) and all((image != 0).any() for image in seen["ungated"])


class LayerScale(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels, 1, 1), 0.1))

    def forward(self, x):
        return x * self.gamma


class Scaled(nn.Module):
    """A block whose branch ends in a norm, a layer scale and a drop path, each a module or none."""

    def __init__(self, scale, drop):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.scale, self.drop = scale, drop

    def forward(self, x):
        return x + self.drop(self.scale(self.norm(self.conv(x))))


@pytest.mark.parametrize("scale", [LayerScale(4), nn.Identity()], ids=["scale", "none"])
@pytest.mark.parametrize("drop", [timm.layers.DropPath(0.5), nn.Identity()], ids=["drop", "none"])
@pytest.mark.parametrize("training", [True, False])
def test_a_gate_stands_before_layer_scale_and_drop_path_that_are_modules(scale, drop, training):
    model = Scaled(scale, drop).train(training)
    (site,) = find_sites(model, torch.empty(2, 4, 8, 8, device="meta"))
    assert (site.module, site.side) == ("norm", "out")
    assert model.training is training


def test_a_gate_stands_in_a_sequence_before_its_layer_scale():
    """torchvision's ConvNeXt has the branch in a sequence, and layer scale as a parameter of the block."""
    blocks = [torchvision.models.convnext.CNBlockConfig(8, None, 2)]
    model = torchvision.models.ConvNeXt(blocks, num_classes=3, stochastic_depth_prob=0.5)
    sites = find_sites(model, torch.empty(2, 3, 32, 32, device="meta"))
    # The last of the branch's sequence moves the axes of channels back.
    assert [(site.module, site.side) for site in sites] == [(f"features.1.{i}.block.6", "out") for i in (0, 1)]
    assert isinstance(model.features[1][0].block[6], torchvision.ops.Permute)


def test_metaformers_have_two_joins_a_block():
    from timm.models.metaformer import LayerNorm2dNoBias, MetaFormer, SepConv

    model = MetaFormer(
        depths=(1, 1),
        dims=(8, 16),
        num_classes=3,
        token_mixers=SepConv,
        norm_layers=LayerNorm2dNoBias,
        layer_scale_init_values=0.1,
        res_scale_init_values=1.0,
        drop_path_rate=0.5,
    )
    sites = find_sites(model, torch.empty(2, 3, 64, 64, device="meta"))
    ends = [f"stages.{i}.blocks.0.{end}" for i in (0, 1) for end in ("token_mixer", "mlp.fc2")]
    assert [(site.module, site.side) for site in sites] == [(end, "out") for end in ends]


class _Written(nn.Module):
    """A residual block whose gate is written out in its forward."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 3)

    def forward(self, x):
        y = self.conv(x)
        return x + y * torch.sigmoid(self.fc(y.mean((2, 3))))[:, :, None, None]


def test_a_gate_that_is_no_module_is_there_and_cannot_be_swapped():
    (refusal,) = survey(nn.Sequential(_Written()), torch.zeros(1, 3, 8, 8)).refused
    assert refusal.reason == "a gate that is computed between modules stands there already"
