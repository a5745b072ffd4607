"""ResNets with gates in Keras and in PyTorch: the same weights, the same logits, both ways."""

import keras
import numpy as np
import pytest
import torch
from keras_cases import BACKEND, apart, first, moved, numpy, only, trained

import excite
from excite.data import load_data
from excite.errors import UserError
from excite.gates import parse_gate
from excite.models.resnet import BasicBlock, Bottleneck, ResNet, ResNetOptions
from excite_keras import ECAResNet50, SEResNet50, create_model, from_keras, insert, list_models, to_keras
from excite_keras.resnet import PLACEMENTS, PadShortcut
from tolerances import KERAS_NETWORK


def pictures(count, size, channels=3):
    """Real images of every class, resized, as a network takes them: [N, H, W, C]."""
    data = load_data("fashion-mnist-mini", image_size=size)
    images = data.val.images[:: len(data.val) // count][:count].float() / 255
    mean, std = data.mean[0], data.std[0]
    return ((images - mean) / std).expand(-1, channels, -1, -1).movedim(1, -1).contiguous().numpy()


def logits(model, x):
    """Of a network in either framework."""
    if isinstance(model, keras.Model):
        return numpy(model(x, training=False))
    with torch.no_grad():
        return model(torch.from_numpy(first(x))).numpy()


def difference(network, model, x):
    """Of two networks' logits, as a share of the largest, on images that the first tells apart."""
    expected = logits(network, x)
    assert abs(expected[0] - expected[1]).max() > 1e-2 * abs(expected).max(), "the images are not told apart"
    return apart(logits(model, x), expected)


def same_weights(one, other):
    theirs = other.state_dict()
    return all(torch.equal(v, theirs[k]) for k, v in one.state_dict().items() if not k.endswith("num_batches_tracked"))


NETWORKS = {
    "resnet20": lambda **o: excite.create_model("resnet20", gate="se(reduction=4)", in_channels=1, **o),
    "resnet20 B": lambda **o: excite.create_model(
        "resnet20", gate="eca", in_channels=1, shortcut="B", stages=(2,), **o
    ),
    "basic": lambda **o: ResNet(BasicBlock, (1, 1, 1, 1), gate=parse_gate("ese"), in_channels=1, **o),
    "official": lambda **o: ResNet(
        Bottleneck, (1, 2, 1, 1), gate=parse_gate("se"), in_channels=1, options=ResNetOptions("1x1", "ceil"), **o
    ),
}


@pytest.mark.parametrize("name", list(NETWORKS)[:1] if BACKEND == "jax" else NETWORKS)
def test_a_network_of_pytorch_there_and_back(name):
    # An odd size tells a padding on one side from one on both.
    x = pictures(3, 33 if "resnet20" in name else 65, 1)
    network = moved(NETWORKS[name](num_classes=5), x)
    model = to_keras(network)
    assert difference(network, model, x) <= KERAS_NETWORK
    back = from_keras(model)
    assert same_weights(network, back) and str(back) == str(network)
    assert np.array_equal(logits(back, x), logits(network, x))


@only("tensorflow")
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_every_placement(placement):
    x = pictures(2, 65)
    network = ResNet(Bottleneck, (1, 2, 1, 1), gate=parse_gate("eca"), placement=placement, stages=(2, 4))
    moved(network, x)
    model = to_keras(network)
    assert difference(network, model, x) <= KERAS_NETWORK
    back = from_keras(model)
    assert same_weights(network, back) and np.array_equal(logits(back, x), logits(network, x))


@only("torch")
def test_channels_first():
    x = pictures(2, 16)
    network = moved(excite.create_model("resnet20", gate="se", num_classes=4), x)
    model = to_keras(network, image_size=16, data_format="channels_first")
    expected = logits(network, x)
    assert apart(numpy(model(first(x))), expected) <= KERAS_NETWORK
    assert same_weights(network, from_keras(model))


@only("tensorflow")
@pytest.mark.parametrize("make, name", [(SEResNet50, "se_resnet50"), (ECAResNet50, "eca_resnet50")])
def test_se_and_eca_resnet50_on_real_images(make, name):
    x = pictures(2, 96)
    model = trained(make(num_classes=10), x)
    network = from_keras(model)
    assert difference(model, network, x) <= KERAS_NETWORK
    theirs = excite.create_model(name, num_classes=10)
    theirs.load_state_dict(network.state_dict())
    assert np.array_equal(logits(theirs.eval(), x), logits(network, x))


@only("tensorflow")
@pytest.mark.parametrize("gate", [None, "se"])
def test_resnet50_of_keras_applications(gate):
    """It strides in the first 1x1, has biases before its norms, which their means take up, and its own epsilon."""
    x = pictures(2, 96)
    model = keras.applications.ResNet50(weights=None, input_shape=x.shape[1:], classes=10, classifier_activation=None)
    model = trained(model if gate is None else insert(model, gate, start="paper"), x)
    network = from_keras(model)
    assert difference(model, network, x) <= KERAS_NETWORK
    assert network.bn1.eps == 1.001e-5 and network.layer2[0].conv1.stride == (2, 2)
    # Each of the three differences shows.
    for change in (_another_epsilon, _stride_in_the_3x3, _no_biases):
        other = from_keras(model)
        change(other, model)
        assert apart(logits(other, x[:1]), logits(network, x[:1])) > 1e-6, change.__name__


def _another_epsilon(network, model):
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 1e-3  # that of keras.layers.BatchNormalization


def _stride_in_the_3x3(network, model):
    for stage in (network.layer2, network.layer3, network.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (1, 1), (2, 2)


def _no_biases(network, model):
    network.bn1.running_mean += torch.from_numpy(model.get_layer("conv1_conv").get_weights()[1])


# JAX updates running statistics twice where a model is called outside of fit.
@only("tensorflow", "torch")
def test_training_mode_agrees_too():
    """Norms as in PyTorch by their batch, but for n / (n - 1) in the running variance, which PyTorch has unbiased."""
    network = excite.create_model("resnet20", gate="se", in_channels=1, num_classes=4)
    model = to_keras(network)
    x = pictures(8, 16, 1)
    network.train()
    expected = network(torch.from_numpy(first(x))).detach().numpy()
    assert apart(numpy(model(x, training=True)), expected) <= KERAS_NETWORK
    mean, variance = (numpy(w.value) for w in model.get_layer("bn1").non_trainable_variables)
    assert np.allclose(mean, network.bn1.running_mean, atol=1e-6)
    n = 8 * 16 * 16
    unbiased = 0.9 + (variance - 0.9) * n / (n - 1)
    assert np.allclose(unbiased, network.bn1.running_var, rtol=1e-5)


@only("tensorflow")
def test_names_and_options_are_pytorchs():
    assert set(list_models()) <= set(excite.list_models())
    model = create_model("se_resnet20", num_classes=0, in_channels=1, image_size=28, zero_init_last_norm=True)
    assert model.output_shape == (None, 64) and model.input_shape == (None, 28, 28, 1)
    assert not numpy(model.get_layer("layer1_0_bn2").gamma.value).any()
    assert create_model("resnet18", gate="eca", stages=[1], classifier_activation="softmax").count_params() == sum(
        v.numel()
        for k, v in excite.create_model("resnet18", gate="eca", stages=(1,)).state_dict().items()
        if not k.endswith("num_batches_tracked")
    )


@only("tensorflow")
def test_the_starts_are_pytorchs():
    keras.utils.set_random_seed(0)
    model = create_model("resnet50", num_classes=10)
    theirs = excite.create_model("resnet50", num_classes=10)
    for name in ("conv1", "layer1.0.conv2", "layer4.0.downsample.0", "fc"):
        ours = numpy(model.get_layer(name.replace(".", "_")).kernel.value)
        assert abs(ours.std() / theirs.get_parameter(f"{name}.weight").std().item() - 1) < 0.05, name


@only("tensorflow", "torch")
def test_a_saved_network_comes_back(tmp_path):
    model = trained(create_model("se_resnet20", in_channels=1, num_classes=3))
    model.save(tmp_path / "network.keras")
    again = keras.models.load_model(tmp_path / "network.keras")
    x = pictures(2, 28, 1)
    assert np.array_equal(logits(again, x), logits(model, x))
    assert from_keras(again).layer3[0].gate.config == parse_gate("se")


def test_odd_sizes_of_the_shortcut_without_weights():
    layer = PadShortcut(2, 2, "channels_last")
    assert layer(np.ones((1, 5, 4, 3), "float32")).shape == layer.compute_output_shape((1, 5, 4, 3)) == (1, 3, 2, 5)
    assert layer.compute_output_shape((None, None, None, 3)) == (None, None, None, 5)


def gated(where):
    return insert(create_model("resnet20", image_size=16), "se", where, start="paper")


@only("tensorflow")
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_inserted_gates_come_along(placement):
    model = gated("residual" if placement == "standard" else placement)
    network = from_keras(model)
    assert network.layer2[1].placement == placement and str(network.layer3[2].gate.config) == "se"
    x = pictures(2, 16, 3)
    assert apart(logits(network, x), logits(model, x)) <= KERAS_NETWORK


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: create_model("resnet51"), "unknown model 'resnet51'"),
        (lambda: create_model("se_resnet18", gate="eca"), "already says gate 'se'; name 'resnet18'"),
        (lambda: create_model("resnet18", stride_in="1x1"), "needs a bottleneck"),
        (lambda: create_model("resnet20", stem_pool="ceil"), "unknown option of model 'resnet20' 'stem_pool'"),
        (lambda: create_model("resnet50", stem_pool="cail"), "did you mean 'ceil'"),
        (lambda: create_model("resnet50", stages=(5,)), r"stages=\(5,\): give some of 1 to 4"),
        (lambda: create_model("resnet50", num_classes=-1), "num_classes=-1: give at least 0"),
        (lambda: create_model("resnet50", placement="stanard"), "did you mean 'standard'"),
        (lambda: to_keras(excite.create_model("mobilenetv2")), "MobileNetV2 has no twin in Keras"),
        (lambda: from_keras(keras.Sequential([keras.Input((4,))])), "its layers are not those of a ResNet"),
        (lambda: from_keras(gated(["layer1_0_bn2"])), "some blocks of a stage have gates, some not"),
        (lambda: from_keras(gated("bn1")), "the gate 'bn1_gate' stands where no placement of a ResNet is"),
        (lambda: from_keras(gated(["layer1_0_bn2", "layer1_0_out"])), "one gate a block, all at one place"),
    ],
)
def test_mistakes_are_told_with_the_way_out(make, said):
    with pytest.raises(UserError, match=said):
        make()


# Attaching loads torch's compiler and Triton, which no process survives that has loaded TensorFlow before.
@only("torch")
def test_attached_gates_have_no_place():
    network = excite.create_model("resnet20", in_channels=1)
    excite.attach_(network, "eca", torch.zeros(1, 1, 16, 16))
    with pytest.raises(UserError, match=r"'layer1.0.bn2.excite_gate.conv.weight' has no place in a Keras ResNet"):
        to_keras(network)
