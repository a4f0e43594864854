from collections.abc import Callable

import pytest
import torch

from mmm4rec.architectures import ARCHITECTURES, build_model
from mmm4rec.baselines.sequential import SequentialBaseline
from mmm4rec.batch import SequenceBatch

NAMES = [name for name in ARCHITECTURES if name != "mmm4rec"]


@pytest.fixture(params=NAMES)
def name(request) -> str:
    """Each trained baseline in turn."""
    return request.param


@pytest.fixture
def build(tiny_config, tiny_catalogue) -> Callable[..., SequentialBaseline]:
    """A tiny baseline in float64 and eval mode, none of whose parameters is at its start."""

    def build(name: str, *overrides: str, catalogue=None) -> SequentialBaseline:
        torch.manual_seed(0)
        config = tiny_config(f"model.name={name}", *overrides)
        model = build_model(config.model, catalogue or tiny_catalogue()).double().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
        return model

    return build


@pytest.fixture
def batch() -> SequenceBatch:
    """Histories of 1 to 6 items, right-padded."""
    generator = torch.Generator().manual_seed(1)
    lengths_B = torch.tensor([6, 1, 4, 2, 6, 3, 5])
    real_BL = torch.arange(6) < lengths_B[:, None]
    items_BL = torch.randint(1, 31, (7, 6), generator=generator) * real_BL
    gaps_BL = torch.randint(1, 30 * 86_400, (7, 6), generator=generator)
    timestamps_BL = (1_400_000_000 + gaps_BL.cumsum(1)) * real_BL
    targets_B = torch.randint(1, 31, (7,), generator=generator)
    return SequenceBatch(items_BL, lengths_B, timestamps_BL, targets_B, torch.arange(7))
