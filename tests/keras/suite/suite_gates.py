"""Every gate as a Keras layer: PyTorch's numbers, and a layer like any other."""

import dataclasses
import inspect

import keras
import numpy as np
import pytest
import torch
from keras import ops
from keras_cases import apart, first, gradients, last, numpy, only, twins

import excite
import excite_keras
from cases import GATE_CASES
from excite.errors import UserError
from excite_keras.gates import GATES
from tolerances import KERAS, PARITY

CASES = [case for case in GATE_CASES if not case.gate.startswith("no_squeeze")]
WIDTH = {case: next(c for c in (16, 8, 32, 64) if case.takes(c)) for case in CASES}
every = pytest.mark.parametrize("case", CASES, ids=str)
every_plain = pytest.mark.parametrize("gate", GATES)


# --- the function --------------------------------------------------------------------------------------------------


@every
def test_the_same_numbers_as_pytorch(case):
    """In float32, channels last or first, on one to three axes."""
    channels = WIDTH[case]
    gate, layer = twins(case.gate, channels, data_format="channels_last")
    for shape in ((2, channels, 3, 4), (2, channels, 5)):
        u = torch.randn(shape) + 0.3
        with torch.no_grad():
            expected = gate(u).numpy()
        assert apart(first(numpy(layer(last(u.numpy())))), expected) <= KERAS
    gate, layer = twins(case.gate, channels, data_format="channels_first")
    u = torch.randn(2, channels, 2, 3, 2) + 0.3
    with torch.no_grad():
        assert apart(numpy(layer(u.numpy())), gate(u).numpy()) <= KERAS


# Of one hidden unit no gradient comes where it is dead.
@pytest.mark.parametrize("gate", ["se(reduction=2)" if name == "se" else name for name in GATES])
def test_the_same_gradients_as_pytorch(gate):
    theirs, layer = twins(gate, 16)
    u = (torch.randn(2, 16, 3, 4) + 0.3).requires_grad_()
    direction = torch.linspace(-1, 1, u.numel()).reshape(u.shape)
    inputs = [u, *theirs.parameters()]
    by_u, *by_weights = torch.autograd.grad(theirs(u), inputs, direction)
    got_u, got = gradients(layer, last(u.detach().numpy()), last(direction.numpy()))
    assert apart(first(got_u), by_u.numpy()) <= 4 * KERAS
    names = [name for name, _ in theirs.named_parameters()]
    assert got.keys() == set(names)
    for name, expected in zip(names, by_weights, strict=True):
        assert apart(got[name], expected.numpy()) <= 4 * KERAS


@pytest.mark.parametrize("shape", [(3, 5, 3, 13), (2, 1, 1, 8), (1, 4, 4, 1), (0, 2, 3, 6)], ids=str)
@pytest.mark.parametrize("gate", ["se", "eca", "se_gc(groups=1)"])
def test_odd_maps(gate, shape):
    theirs, layer = twins(gate, shape[-1])
    u = torch.randn(shape)
    y = numpy(layer(u.numpy()))
    with torch.no_grad():
        expected = theirs(u.movedim(-1, 1)).movedim(1, -1).numpy()
    assert y.shape == shape and np.allclose(y, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("text", ["se", "se(descriptor=max)", "eca", "se_gc(groups=2)"])
def test_half_precision_pools_in_float32(text):
    """A float16 sum of this map is infinite, and its mean in bfloat16 loses the digits that tell channels apart."""
    theirs, layer = twins(text, 8, dtype="mixed_float16")
    u = torch.randn(1, 64, 64, 8) * 0.5 + 40 + torch.arange(8.0)
    y = layer(u.numpy().astype("float16"))
    assert keras.backend.standardize_dtype(y.dtype) == "float16"
    assert all(keras.backend.standardize_dtype(w.dtype) == "float32" for w in layer.weights)
    with torch.no_grad():
        expected = theirs(u.half().float().movedim(-1, 1)).movedim(1, -1).numpy()
    assert np.isfinite(numpy(y)).all()
    assert apart(numpy(y).astype("float32"), expected) <= PARITY[torch.float16]["rtol"]


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
@pytest.mark.parametrize("text", ["se(reduction=2)", "se(reduction=2,descriptor=max)", "eca", "se_gc(groups=2)"])
@pytest.mark.parametrize("dtype", ["uint8", "int32"])
def test_a_map_of_integers_is_floats_of_the_policy(text, dtype, policy):
    theirs, layer = twins(text, 8, dtype=policy)
    u = torch.randint(0, 200, (2, 3, 5, 8))
    with torch.no_grad():
        expected = theirs(u.float().movedim(-1, 1)).movedim(1, -1).numpy()
    maps = keras.Input((3, 5, 8), dtype=dtype)
    for y in (layer(u.numpy().astype(dtype)), keras.Model(maps, layer(maps))(u.numpy().astype(dtype))):
        assert keras.backend.standardize_dtype(y.dtype) == layer.compute_dtype
        assert apart(numpy(y).astype("float32"), expected) <= (1e-5 if policy == "float32" else 2e-3)


def test_a_policy_of_bfloat16_alone():
    layer = excite_keras.SqueezeExcite(4, dtype="bfloat16")
    y = layer(ops.ones((2, 3, 3, 8), "bfloat16"))
    assert {keras.backend.standardize_dtype(t.dtype) for t in (y, *layer.weights)} == {"bfloat16"}


# --- the neutral start ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gate", [name for name in GATES if name != "se_var1"])
def test_a_neutral_gate_leaves_the_map_as_it_is_and_learns(gate):
    layer = GATES[gate]().as_neutral()
    u = np.random.default_rng(0).normal(size=(2, 4, 4, 16)).astype("float32")
    assert np.array_equal(numpy(layer(u)), u)
    _, found = gradients(layer, u, np.sign(u))
    assert max(abs(g).max() for g in found.values()) > 0


def test_without_weights_there_is_no_neutral_form():
    with pytest.raises(UserError, match="gate 'se_var1' has no neutral form: its scale is the sigmoid of the mean"):
        excite_keras.SEVar1().as_neutral()


# --- a layer like any other ----------------------------------------------------------------------------------------


@every
def test_text_and_config_give_the_layer_again(case):
    layer = excite_keras.parse_gate(case.gate)
    assert layer.text == str(excite.parse_gate(case.gate))
    again = type(layer).from_config(layer.get_config())
    assert again.text == layer.text and again.name == layer.name and again.data_format == layer.data_format
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(restored) is type(layer) and restored.get_config() == layer.get_config()


@only("tensorflow")
@every_plain
def test_options_defaults_and_types_are_pytorchs(gate):
    config = type(excite.parse_gate(gate))
    fields = {f.name: f.default for f in dataclasses.fields(config)}
    assert {f.name: f.default for f in dataclasses.fields(GATES[gate].Options)} == fields
    hints = inspect.get_annotations(config, eval_str=True)
    assert {f.name: f.type for f in dataclasses.fields(GATES[gate].Options)} == {n: hints[n] for n in fields}
    assert list(GATES) == [name for name in excite.list_gates() if name != "no_squeeze"]


@every_plain
def test_parameters_are_as_many_as_pytorchs(gate):
    layer = GATES[gate]()
    layer.build((None, None, None, 32))
    theirs = excite.parse_gate(gate).build(32)
    assert layer.count_params() == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("size", [(None,), (None, 5), (3, None, 2)], ids=str)
def test_shapes_that_are_not_known(size, data_format):
    shape = (*size, 16) if data_format == "channels_last" else (16, *size)
    for gate in GATES.values():
        layer = gate(data_format=data_format)
        y = layer(keras.Input(shape))
        assert y.shape == (None, *shape) and layer.compute_output_shape((4, *shape)) == (4, *shape)
        assert keras.backend.standardize_dtype(y.dtype) == "float32"


def test_a_saved_model_comes_back(tmp_path):
    x = keras.Input((None, None, 16))
    y = x
    for gate in GATES.values():
        y = gate()(y)
    model = keras.Model(x, y)
    model.save(tmp_path / "gates.keras")
    again = keras.models.load_model(tmp_path / "gates.keras")
    u = np.random.default_rng(0).normal(size=(2, 4, 4, 16)).astype("float32")
    assert np.array_equal(numpy(again(u)), numpy(model(u)))
    assert [layer.text for layer in again.layers[1:]] == list(GATES)


@pytest.mark.parametrize("jit_compile", [pytest.param(True, marks=only("tensorflow", "jax")), False])
def test_it_trains(jit_compile):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Conv2D(8, 3), excite_keras.SqueezeExcite(4), excite_keras.EfficientChannelAttention()]
    head = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2)]
    model = keras.Sequential([keras.Input((None, None, 1)), *layers, *head])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.5, momentum=0.9), loss, jit_compile=jit_compile)
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(16, 6, 6, 1)).astype("float32"), np.arange(16) % 2
    x[labels == 1] += 1
    before = [numpy(w) for w in model.trainable_weights]
    losses = model.fit(x, labels, batch_size=16, epochs=8, verbose=0).history["loss"]
    assert losses[-1] < 0.7 * losses[0]
    after = [numpy(w) for w in model.trainable_weights]
    assert all(not np.array_equal(a, b) for a, b in zip(before, after, strict=True))


# --- mistakes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: excite_keras.SqueezeExcite(0), "gate 'se': reduction=0 must be at least 1"),
        (lambda: excite_keras.SqueezeExcite(activation="rellu"), "did you mean 'relu'"),
        (lambda: excite_keras.SqueezeExcite(reduction="8"), "reduction='8' is not an integer"),
        (lambda: excite_keras.SqueezeExcite(hard_sigmoid_slope=0.2), "has no effect with gate_function='sigmoid'"),
        (lambda: excite_keras.EfficientChannelAttention(4), "kernel_size=4 must be odd"),
        (lambda: excite_keras.SEGC(3)(np.ones((1, 2, 2, 16))), "groups=3 does not divide 16 channels"),
        (lambda: excite_keras.SEGC(8, group_size=2), "say the same thing; give one"),
        (lambda: excite_keras.SEVar1(data_format="last"), "give 'channels_last', 'channels_first'"),
        (lambda: excite_keras.SqueezeExcite()(np.ones((2, 16))), "takes a map .* with 1 to 3 spatial axes"),
        (lambda: excite_keras.SqueezeExcite()(np.ones((2, 0, 4, 16))), "map without positions is undefined"),
        (lambda: excite_keras.SqueezeExcite()(keras.Input((4, 4, None))), "needs to know how many channels"),
        (lambda: excite_keras.parse_gate("se(reducton=8)"), "did you mean 'reduction'"),
        (lambda: excite_keras.parse_gate("sea"), "unknown gate 'sea': did you mean 'se'"),
        (lambda: excite_keras.parse_gate("no_squeeze"), "there in PyTorch alone"),
        (lambda: excite_keras.parse_gate("none(a=1)"), "'none' has no options"),
        (lambda: excite_keras.parse_gate(excite_keras.SEVar1), "give the layer itself, with its parentheses"),
        (
            lambda: excite_keras.load_gate(excite_keras.SqueezeExcite(8), excite.parse_gate("se").build(16)),
            r"is the gate 'se\(reduction=8\)', the other is 'se'",
        ),
    ],
)
def test_mistakes_are_told_with_the_way_out(make, said):
    with pytest.raises(UserError, match=said):
        make()


def test_a_map_of_another_width_is_refused():
    layer = excite_keras.EfficientChannelAttention()
    layer.build((None, 4, 4, 16))
    with pytest.raises(ValueError, match="expected axis -1 of input shape to have value 16"):
        layer(np.ones((1, 4, 4, 8), "float32"))


def test_none_is_no_gate():
    assert excite_keras.parse_gate("none") is None and excite_keras.parse_gate(None) is None
