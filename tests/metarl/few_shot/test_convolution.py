"""The convolution against torch's own, with derivatives of both orders."""

import pytest
import torch
import torch.nn.functional as F

from metarl.few_shot.convolution import Convolution


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(5, 6), (4, 7)])
def test_convolution_is_torchs(stride, size):
    layer = Convolution(3, 4, stride).double()
    images = torch.randn(2, *size, 3, dtype=torch.float64)
    weight = layer.weight.view(3, 3, 3, 4).permute(3, 2, 0, 1)
    expected = F.conv2d(images.permute(0, 3, 1, 2), weight, stride=stride, padding=1).permute(0, 2, 3, 1)
    torch.testing.assert_close(layer(images), expected)

    def call(images, weight):
        return torch.func.functional_call(layer, {"weight": weight}, (images,)).sin()

    inputs = (images.requires_grad_(), layer.weight.detach().requires_grad_())
    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)
