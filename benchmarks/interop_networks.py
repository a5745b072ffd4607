"""The networks of interop.py and interop_keras.py."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from excite import NetworkSpec, attach_
from excite.deploy import fold_gates_
from excite.models.base import gate_modules
from excite.networks import build


@torch.no_grad()
def network(name: str, side: int) -> tuple[nn.Module, Tensor]:
    """A network with norms, biases and gates as training leaves them, and an example."""
    plain = name.partition(" + ")[0].partition(",")[0]
    example = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    model = build(NetworkSpec(plain, num_classes=10 if side == 32 else 1000), seed=0).eval()
    if " + " in name:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            attach_(model, name.partition(" + ")[2], example, start="paper")
    generator = torch.Generator().manual_seed(0)
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.dim() == 1 and not key.endswith("running_var"):
            if key.endswith("weight"):
                tensor.uniform_(0.4, 1.2, generator=generator)
            else:
                tensor.normal_(0, 0.2, generator=generator)
    if name.endswith(", slimmed"):
        gates = list(gate_modules(model).items())[::2]  # every other one becomes a constant
        scales = {key: torch.rand(gate.channels, generator=generator) for key, gate in gates}  # type: ignore[arg-type]
        fold_gates_(model, scales, example)
    return model, example
