"""Gates in functional models: found at the papers' places, put in without changing an output, or refused with why."""

from functools import cache

import keras
import numpy as np
import pytest
from keras import layers
from keras_cases import BACKEND, numpy, only, trained

import excite_keras
from excite.errors import UserError
from excite_keras import SqueezeExcite, find_sites, insert
from excite_keras.gates import GATES
from excite_keras.graph import Graph
from excite_keras.resnet import PLACEMENTS, ResNetLayout, build
from tolerances import KERAS

TINY = ResNetLayout((1, 2, 1), bottleneck=True, num_classes=3, shortcut="B")


@cache
def tiny(**changes):
    return trained(build(ResNetLayout(**{**TINY.__dict__, **changes}), image_size=16))


def images(*shape):
    return np.random.default_rng(1).normal(size=shape).astype("float32")


def outputs(model, x):
    return numpy(model(x, training=False))


# --- places --------------------------------------------------------------------------------------------------------


PLACES_FOUND = [
    ("residual", "layer1_0_bn3 layer2_0_bn3 layer2_1_bn3 layer3_0_bn3"),
    ("pre", "relu layer1_0_out layer2_0_out layer2_1_out"),
    ("post", "layer1_0_out layer2_0_out layer2_1_out layer3_0_out"),
    ("identity", "layer1_0_downsample_1 layer2_0_downsample_1 layer2_0_out layer3_0_downsample_1"),
    ("inner", "layer1_0_relu2 layer2_0_relu2 layer2_1_relu2 layer3_0_relu2"),
    (
        "conv",
        "relu layer1_0_relu1 layer1_0_relu2 layer2_0_relu1 layer2_0_relu2 layer2_1_relu1 layer2_1_relu2 "
        "layer3_0_relu1 layer3_0_relu2",
    ),
    ("block:layer?_0_out", "layer1_0_out layer2_0_out layer3_0_out"),
    (["layer3_0_out", "bn1"], "bn1 layer3_0_out"),
    ("layer2_0_add", "layer2_0_add"),
    (lambda name, layer: isinstance(layer, layers.Add), "layer1_0_add layer2_0_add layer2_1_add layer3_0_add"),
]


# JAX compiles each operation for each shape: two places show that nothing hangs on the backend.
@pytest.mark.parametrize("where, expected", PLACES_FOUND[:2] if BACKEND == "jax" else PLACES_FOUND, ids=str)
def test_each_place_is_found_in_order_and_changes_nothing(where, expected):
    model = tiny()
    sites = find_sites(model, where)
    assert " ".join(site.layer for site in sites) == expected
    x = images(2, 16, 16, 3)
    before = outputs(model, x)
    gated = insert(model, "se(reduction=4)", where)
    assert np.array_equal(outputs(gated, x), before)
    assert [layer.name for layer in gated.layers if isinstance(layer, SqueezeExcite)] == [s.gate for s in sites]
    for layer in model.layers:
        assert all(map(np.array_equal, gated.get_layer(layer.name).get_weights(), layer.get_weights()))
    # The paper's start is another function; the model that was given is what it was.
    assert not np.array_equal(outputs(insert(model, "se", where, start="paper"), x), before)
    assert np.array_equal(outputs(model, x), before) and not any(isinstance(n, SqueezeExcite) for n in model.layers)


@only("tensorflow", "torch")
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_gate_stands_where_the_placement_has_it(placement):
    """A plain network with gates inserted is the network that was built with them."""
    built = tiny(gate="eca_ns", placement=placement)
    plain = keras.models.clone_model(tiny())
    for layer in plain.layers:
        layer.set_weights(built.get_layer(layer.name).get_weights())
    gated = insert(plain, "eca_ns", "residual" if placement == "standard" else placement, start="paper")
    theirs, ours = ([n for n in m.layers if n.name.endswith("_gate")] for m in (built, gated))
    assert len(theirs) == len(ours) == 4
    for one, other in zip(theirs, ours, strict=True):
        other.set_weights(one.get_weights())
    x = images(2, 16, 16, 3)
    expected = outputs(built, x)
    assert abs(outputs(gated, x) - expected).max() <= KERAS * abs(expected).max()
    assert abs(outputs(plain, x) - expected).max() > 1e-3 * abs(expected).max()


def test_stages_are_the_resolutions_of_the_additions():
    model = tiny()
    assert [site.stage for site in find_sites(model)] == [1, 2, 2, 3]
    assert [site.layer for site in find_sites(model, stages=(3, 1))] == ["layer1_0_bn3", "layer3_0_bn3"]
    assert [site.size for site in find_sites(model)] == [(16, 16), (8, 8), (8, 8), (4, 4)]
    assert find_sites(build(TINY))[0].size == (None, None)
    with pytest.raises(UserError, match=r"stages=\(4,\): this network has stages 1 to 3"):
        insert(model, "se", stages=(4,))
    with pytest.raises(UserError, match="leaves the image size open; build it with an input_shape"):
        insert(build(TINY), "se", stages=(1,))


@only("tensorflow", "torch")
@pytest.mark.parametrize("gate", [name for name in GATES if name != "se_var1"])
def test_every_gate_with_a_neutral_form_changes_nothing(gate):
    model, x = tiny(), images(1, 16, 16, 3)
    # The narrowest map there has 64 channels.
    assert np.array_equal(outputs(insert(model, gate), x), outputs(model, x))


APPLICATIONS = [
    ("ResNet50", {}, "residual", 16),
    ("ResNet50V2", {}, "residual", 16),
    ("VGG16", {"include_top": False}, "conv", 13),
    ("InceptionV3", {"include_top": False}, [f"mixed{i}" for i in range(11)], 11),
    ("MobileNetV2", {}, "residual", 10),
    ("MobileNetV3Small", {}, "residual", 6),
    ("EfficientNetB0", {}, "residual", 9),
    ("ConvNeXtTiny", {}, "residual", 18),
]


@only("tensorflow")
@pytest.mark.parametrize("name, arguments, where, count", APPLICATIONS, ids=[case[0] for case in APPLICATIONS])
def test_networks_of_keras_applications(name, arguments, where, count):
    side = 75 if name == "InceptionV3" else 32
    model = getattr(keras.applications, name)(weights=None, input_shape=(side, side, 3), **arguments)
    trained(model)
    sites = find_sites(model, where)
    assert len(sites) == count
    if name == "ConvNeXtTiny":  # before layer scale and drop path
        assert all(site.layer.endswith("pointwise_conv_2") for site in sites)
    if name == "MobileNetV3Small":  # eleven blocks, of which all but two have a gate behind their depthwise convolution
        assert len(find_sites(model, "inner")) == 2
        with pytest.raises(UserError, match=r"expanded_conv_squeeze_excite_mul \(Multiply\) stands there already"):
            insert(model, "se", "expanded_conv_squeeze_excite_mul")
    x = images(1, side, side, 3)
    gated = insert(model, "eca", where)
    assert np.array_equal(outputs(gated, x), outputs(model, x))
    assert gated.count_params() - model.count_params() == sum(gated.get_layer(s.gate).count_params() for s in sites)


# --- other models --------------------------------------------------------------------------------------------------


@only("torch")
def test_inputs_keep_their_names():
    unnamed, named = keras.Input((8, 8, 3)), keras.Input((8, 8, 3), name="other")
    x = layers.Conv2D(3, 3, padding="same")(unnamed)
    model = keras.Model([unnamed, named], layers.Add()([unnamed, x]) + named)
    gated = insert(model, "se")
    kept = [layer.name for layer in gated.layers if not layer.name.endswith("_gate")]
    assert kept == [layer.name for layer in model.layers]
    given = [images(2, 8, 8, 3), images(2, 8, 8, 3)]
    assert np.array_equal(outputs(gated, given), outputs(model, given))


def test_a_sequential_model_stays_one(tmp_path):
    parts = [layers.Conv2D(8, 3, activation="relu"), layers.MaxPooling2D(), layers.Conv2D(8, 3), layers.ReLU()]
    model = keras.Sequential([keras.Input((12, 12, 3)), *parts, layers.GlobalAveragePooling2D()], name="small_vgg")
    x = images(2, 12, 12, 3)
    assert not insert(model, "se(reduction=2)", "conv").compiled
    model.compile("sgd", "mse", metrics=["mae"])
    gated = insert(model, "se(reduction=2)", "conv")
    assert type(gated) is keras.Sequential and gated.compiled and gated.optimizer is not model.optimizer
    hosts = [parts[0].name, parts[3].name]
    assert [x.name for x in gated.layers if isinstance(x, SqueezeExcite)] == [f"{name}_gate" for name in hosts]
    assert [site.label for site in find_sites(model, "conv")] == [parts[0].name, parts[2].name]
    assert gated.name == "small_vgg" and np.array_equal(outputs(gated, x), outputs(model, x))
    gated.save(tmp_path / "gated.keras")
    assert np.array_equal(outputs(keras.models.load_model(tmp_path / "gated.keras"), x), outputs(model, x))


def test_operations_lambdas_shared_layers_and_two_outputs():
    x = keras.Input((8, 8, 4))
    shared = layers.Conv2D(4, 3, padding="same", name="shared")
    y = shared(layers.Lambda(lambda t: t * 2)(shared(x)))
    z = y + layers.BatchNormalization(name="norm")(layers.Conv2D(4, 3, padding="same")(y))
    z = keras.ops.relu(z)
    model = trained(keras.Model(x, {"map": z, "pooled": layers.GlobalMaxPooling2D()(z)}))
    assert [site.layer for site in find_sites(model)] == ["norm"]
    assert find_sites(model, "post")[0].layer == next(n.name for n in Graph(model).nodes if "relu" in n.name)
    u = images(2, 8, 8, 4)
    for where in ("residual", "pre", "post", "identity"):
        if where in ("pre", "identity"):  # what they would see is made by a layer that is called twice
            with pytest.raises(UserError, match="shared is called 2 times"):
                insert(model, "eca", where)
            continue
        gated = insert(model, "eca", where)
        assert all(map(np.array_equal, *(map(numpy, m(u).values()) for m in (gated, model))))


@pytest.mark.parametrize("rank", [1, 3])
def test_maps_of_one_and_three_axes(rank):
    conv = layers.Conv1D if rank == 1 else layers.Conv3D
    x = keras.Input((*[4] * rank, 6))
    model = keras.Model(x, layers.Add()([x, conv(6, 3, padding="same", name="last")(x)]))
    gated = insert(model, "se(reduction=2)")
    u = images(2, *[4] * rank, 6)
    assert np.array_equal(outputs(gated, u), outputs(model, u)) and find_sites(model)[0].layer == "last"


@only("torch", "jax")
def test_channels_first():
    x = keras.Input((6, 8, 8))
    y = layers.Conv2D(6, 3, padding="same", data_format="channels_first")(x)
    model = keras.Model(x, layers.Add()([x, y]))
    gated = insert(model, "se(reduction=2)")
    assert find_sites(model)[0].channels == 6 and gated.layers[-2].data_format == "channels_first"
    u = images(2, 6, 8, 8)
    assert np.array_equal(outputs(gated, u), outputs(model, u))


def test_gates_take_the_policy_of_their_layer():
    with_policy = keras.layers.Conv2D(4, 3, padding="same", dtype="mixed_float16")
    x = keras.Input((6, 6, 4))
    model = keras.Model(x, layers.Add(dtype="mixed_float16")([x, with_policy(x)]))
    gate = next(n for n in insert(model, "se(reduction=2)").layers if isinstance(n, SqueezeExcite))
    assert gate.compute_dtype == "float16" and gate.variable_dtype == "float32"


@only("tensorflow", "torch")  # JAX takes a minute to compile the step
def test_a_gated_model_is_saved_and_trained_further(tmp_path):
    model = keras.models.clone_model(tiny())
    model.compile("sgd", "mse")
    gated = insert(model, "se(reduction=4)")
    assert gated.compiled
    x = images(4, 16, 16, 3)
    gated.fit(x, np.ones((4, 3), "float32"), verbose=0)
    assert any(abs(n.get_weights()[2]).max() > 0 for n in gated.layers if isinstance(n, SqueezeExcite))
    gated.save(tmp_path / "gated.keras")
    again = keras.models.load_model(tmp_path / "gated.keras")
    assert np.array_equal(outputs(again, x), outputs(gated, x))


# --- mistakes ------------------------------------------------------------------------------------------------------


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.conv = layers.Conv2D(4, 3)

    def call(self, x):
        return self.conv(x)


def nested():
    x = keras.Input((16, 16, 3))
    return keras.Model(x, layers.Dense(2)(tiny()(x)))


def plain():
    x = keras.Input((8, 8, 3))
    return keras.Model(x, layers.Conv2D(4, 3, name="only")(x))


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: insert(Subclassed(), "se"), "Subclassed is no functional model"),
        (lambda: insert(keras.Sequential([layers.Conv2D(4, 3)]), "se"), "does not know its input yet"),
        (lambda: insert(nested(), "se"), "within it is one layer: insert into that one first"),
        (lambda: insert(plain(), "se"), "has no residual additions; where='conv' puts gates after"),
        (lambda: insert(plain(), "se", "conv"), "nothing in the network is such a place"),
        (lambda: insert(plain(), "se", "onyl"), "unknown place or layer 'onyl': did you mean 'only'"),
        (lambda: insert(tiny(), "se", "residuall"), "did you mean 'residual'"),
        (lambda: insert(tiny(), "se", "block:nothing*"), "nothing in the network is such a place"),
        (lambda: insert(tiny(), "se", ["fc"]), "no feature map"),
        (lambda: insert(tiny(), "none"), "gate='none' inserts nothing"),
        (lambda: insert(tiny(), "se", start="netural"), "unknown start 'netural': did you mean 'neutral'"),
        (lambda: insert(tiny(), "se_var1"), "gate 'se_var1' has no neutral form"),
        (lambda: insert(tiny(), "se_gc(groups=7)"), "groups=7 does not divide"),
        (lambda: insert(insert(tiny(), "se"), "eca"), r"layer1_0_bn3_gate \(SqueezeExcite\) stands there already"),
        (lambda: insert(insert(tiny(), "se", "pre"), "se", "pre"), "a layer is called 'layer1_0_add_pre_gate' already"),
        (lambda: insert(tiny(), "se", stages="12"), "give a sequence of some of 1 to 3"),
    ],
)
def test_mistakes_are_told_with_the_way_out(make, said):
    with pytest.raises(UserError, match=said):
        make()


def test_a_layer_with_weights_is_no_gate_for_several_places():
    layer = SqueezeExcite(4)
    layer.build((None, 4, 4, 16))
    with pytest.raises(UserError, match="has weights already: each place gets a gate of its own"):
        insert(tiny(), layer)
    assert insert(tiny(), SqueezeExcite(4)).get_layer("layer1_0_bn3_gate").text == "se(reduction=4,neutral=true)"


def test_the_backend_is_the_one_that_was_asked_for():
    assert keras.config.backend() == BACKEND and excite_keras.list_gates() == list(GATES)
