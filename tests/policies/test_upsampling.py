"""A decoder's fused upsampling against diffusers' own layers."""

import copy

import pytest
import torch
from diffusers.models.upsampling import Upsample2D

from sdpo_bench.config import RunConfig
from sdpo_bench.policies import load_policy
from sdpo_bench.policies.loading import load_pipeline
from sdpo_bench.policies.upsampling import fuse_upsampling


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(1, 1), (5, 9), (8, 8)])
def test_a_fused_layer_computes_the_same(bias, size):
    plain = Upsample2D(12, use_conv=True, out_channels=7, bias=bias).requires_grad_(False).double()
    fused = copy.deepcopy(plain)
    assert fuse_upsampling(fused) == 1
    x = torch.randn(3, 12, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.allclose(fused(x), plain(x), rtol=0, atol=1e-14)
    gradients = [torch.autograd.grad(layer(x).square().sum(), x)[0] for layer in (fused, plain)]
    assert torch.allclose(*gradients, rtol=0, atol=1e-13)
    assert fused.state_dict().keys() == plain.state_dict().keys()


def test_a_decoder_may_be_copied_and_cast():
    """A tensor of its own would stay what it was."""
    plain = Upsample2D(12, use_conv=True, out_channels=7).requires_grad_(False)
    fused = copy.deepcopy(plain)
    fuse_upsampling(fused)
    x = torch.randn(3, 12, 5, 9, generator=torch.Generator().manual_seed(0))
    wide = copy.deepcopy(fused).double()
    assert torch.allclose(wide(x.double()), copy.deepcopy(plain).double()(x.double()), rtol=0, atol=1e-14)
    assert fused(x).dtype == torch.float32
    assert torch.allclose(wide.float()(x), fused(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "options", [{"use_conv": False}, {"use_conv_transpose": True}, {"use_conv": True, "kernel_size": 5, "padding": 2}]
)
def test_layers_of_another_form_are_left_alone(options):
    assert fuse_upsampling(Upsample2D(4, **options)) == 0


def test_the_embedded_decoder_is_fused_on_a_cpu_and_paints_the_same_pictures():
    policy = load_policy(RunConfig(device="cpu"))
    plain = load_pipeline("embedded").vae
    assert fuse_upsampling(load_pipeline("embedded").vae.decoder) == 2
    latents = torch.randn(20, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = (plain.decode(latents / plain.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
    assert (policy.decode(latents) - expected).abs().max() < 1e-5
    assert not torch.equal(policy.decode(latents), expected)  # it is another computation, or nothing was fused
