"""Which class a `model.name` is."""

from __future__ import annotations

from mmm4rec.baselines.bsarec import BSARec
from mmm4rec.baselines.gru4rec import GRU4Rec
from mmm4rec.baselines.mamba4rec import Mamba4Rec
from mmm4rec.baselines.sasrec import SASRec
from mmm4rec.baselines.sequential import SequentialBaseline
from mmm4rec.baselines.tim4rec import TiM4Rec
from mmm4rec.batch import ItemCatalogue
from mmm4rec.config import ModelConfig
from mmm4rec.model import MMM4Rec

Model = MMM4Rec | SequentialBaseline

ARCHITECTURES: dict[str, type[Model]] = {
    "mmm4rec": MMM4Rec,
    "sasrec": SASRec,
    "gru4rec": GRU4Rec,
    "bsarec": BSARec,
    "mamba4rec": Mamba4Rec,
    "tim4rec": TiM4Rec,
}


def build_model(config: ModelConfig, catalogue: ItemCatalogue) -> Model:
    """Build the model that `config.name` says, a Recommender (see `lit_module`).

    Raises:
        ConfigError: the features or numbers do not allow what `config` asks for.
    """
    return ARCHITECTURES[config.name](config, catalogue)
