"""Each attention backend of this GPU against the reference, and masks built without synchronisation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pretrain.model.attention.call import AttentionMask, attention
from pretrain.model.attention.choose import check_backend, packed_mask, unsupported_reason
from pretrain.model.attention.hardware import detect
from pretrain.model.config import AttentionBackend, ModelConfig, RecomputePolicy
from pretrain.model.transformer import Transformer, initialise
from tests.support.packings import Packing, action_sample, packing, worldvla

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

BACKENDS: tuple[AttentionBackend, ...] = ("sdpa", "flex", "flash", "flash2")
PACKINGS = {
    "worldvla": worldvla(2048, 2),
    "odd length, padding": packing([[action_sample(300, 5, 9, history=2)] * 2, [[0] * 77]], 777),
    "long chunk": packing([[action_sample(90, 25, 9)] * 2], 650),
    "shorter than a block": packing([[action_sample(20, 2, 9)]], 50),
}


def mask_of(backend: AttentionBackend, packed: Packing, head_size: int = 64) -> AttentionMask:
    """The backend's mask on this GPU; skips the test where the backend cannot run."""
    device = torch.device("cuda")
    reason = unsupported_reason(backend, detect(device), torch.bfloat16, head_size)
    if reason is not None:
        pytest.skip(f"{backend} {reason}")
    config = ModelConfig(hidden_size=head_size, heads=1, attention=backend)
    return packed_mask(*packed, config, device, torch.bfloat16)


def results(mask: AttentionMask, tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Output and gradients of queries, keys and values, fp32."""
    query, key, value, gradient = (tensor.detach().to(dtype) for tensor in tensors)
    inputs = [tensor.requires_grad_() for tensor in (query, key, value)]
    output = attention(query, key, value, mask)
    return [actual.float() for actual in (output, *torch.autograd.grad(output, inputs, gradient))]


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize(("heads", "shared", "size"), [(4, 4, 64), (4, 2, 128)])
@pytest.mark.parametrize("name", PACKINGS)
def test_output_and_gradients_equal_the_reference(
    name: str, heads: int, shared: int, size: int, backend: AttentionBackend
) -> None:
    """As close to fp32 as the reference in bf16, within a factor of two (gradients: three)."""
    packed = PACKINGS[name]
    mask, dense = mask_of(backend, packed, size), mask_of("sdpa", packed, size)
    generator = torch.Generator("cuda").manual_seed(0)
    batch, length = packed[0].shape
    tensors = [
        torch.randn(batch, length, n, size, device="cuda", generator=generator).bfloat16().transpose(1, 2)
        for n in (heads, shared, shared, heads)
    ]
    exact = results(dense, tensors, torch.float32)
    plain, actual = results(dense, tensors, torch.bfloat16), results(mask, tensors, torch.bfloat16)
    for what, ours, theirs, right in zip(("output", "dq", "dk", "dv"), actual, plain, exact, strict=True):
        bound = (2 if what == "output" else 3) * (theirs - right).abs().max() + 1e-3
        assert (ours - right).abs().max() <= bound, what


@pytest.mark.parametrize("backend", BACKENDS)
def test_mask_is_built_without_synchronising_with_the_gpu(backend: AttentionBackend) -> None:
    mask_of(backend, PACKINGS["worldvla"])  # the first call may load code, which synchronises
    torch.cuda.set_sync_debug_mode("error")
    try:
        mask_of(backend, PACKINGS["worldvla"])
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_every_backend_gives_the_same_training(recompute: RecomputePolicy, backend: AttentionBackend) -> None:
    packed = worldvla(512, 2, image=40)
    tokens = torch.randint(0, 64, packed[0].shape, device="cuda")
    positions = torch.arange(512, device="cuda").expand(2, 512)
    gradients: list[Tensor] = []
    for attended in ("sdpa", backend):
        mask = mask_of(attended, packed)
        config = ModelConfig(
            vocabulary_size=64,
            hidden_size=128,
            ffn_size=128,
            layers=2,
            heads=2,
            dropout=0.0,
            recompute=recompute,
        )
        model = Transformer(config)
        initialise(model, 0)
        model.cuda().bfloat16().train()
        model(tokens, positions, mask).float().logsumexp(-1).mean().backward()
        each = [parameter.grad for parameter in model.parameters()]
        gradients.append(torch.cat([gradient.float().flatten() for gradient in each if gradient is not None]))
    difference = (gradients[0] - gradients[1]).norm() / gradients[0].norm()
    assert difference < 0.05


def test_auto_selects_a_fast_backend_if_available() -> None:
    device = torch.device("cuda")
    config = ModelConfig()
    chosen = check_backend(config, device, torch.bfloat16)
    assert unsupported_reason(chosen, detect(device), torch.bfloat16, config.head_size) is None
    if torch.cuda.get_device_capability() >= (8, 0):
        assert chosen in ("flex", "flash")
    assert check_backend(config, device, torch.float32) == "sdpa"
