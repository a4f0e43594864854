import pytest
import torch
from torch.testing import assert_close
from transformers import MambaConfig
from transformers.models.mamba.modeling_mamba import MambaMixer

from mmm4rec.baselines.mamba4rec import Mamba


def test_the_block_is_the_one_of_transformers_with_the_same_weights(build):
    ours = build("mamba4rec", "model.d_state=5", "model.d_conv=3").layers[0].mamba.float()
    config = MambaConfig(
        hidden_size=16, state_size=5, conv_kernel=3, expand=2, time_step_rank=1, use_mambapy=False
    )
    theirs = MambaMixer(config, layer_idx=0).eval()
    renamed = {"conv.": "conv1d.", "step_proj.": "dt_proj."}
    weights = ours.state_dict()
    for our_part, their_part in renamed.items():
        weights = {name.replace(our_part, their_part): w for name, w in weights.items()}
    theirs.load_state_dict(weights)
    x_BLD = torch.randn(3, 6, 16, generator=torch.Generator().manual_seed(0))
    assert ours(x_BLD).abs().max() > 0.1
    assert_close(ours(x_BLD), theirs(x_BLD), rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_only_several_layers_have_residuals(build, num_layers):
    layer = build("mamba4rec", f"model.num_layers={num_layers}").layers[0]
    x_BLD = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0)).double()
    mixed_BLD = layer.mamba(x_BLD) + (x_BLD if num_layers == 2 else 0)
    hidden_BLD = layer.norm(mixed_BLD)
    feed_forward = layer.feed_forward
    inner_BLF = torch.nn.functional.gelu(feed_forward.fc1(hidden_BLD))
    expected = feed_forward.norm(feed_forward.fc2(inner_BLF) + hidden_BLD)
    assert_close(layer(x_BLD), expected)


def test_states_start_at_mamba_s_rates_and_steps(tiny_config):
    torch.manual_seed(0)
    mamba = Mamba(tiny_config("model.d_model=64", "model.d_state=3").model)
    assert_close(mamba.A_log.exp(), torch.tensor([[1.0, 2.0, 3.0]]).expand(128, 3))
    assert mamba.step_proj.in_features == 4
    step_E = torch.nn.functional.softplus(mamba.step_proj.bias)
    assert 0.00099 < step_E.min() < 0.002
    assert 0.05 < step_E.max() < 0.101
    assert mamba.D.tolist() == [1.0] * 128
