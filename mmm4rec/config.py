"""Every setting of the project, one section per consumer.

`fidelity: official` changes the default of the fields in `OFFICIAL`; a field that is set by hand
keeps its value, and the resolved configuration says which it was.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fidelity = Literal["corrected", "official"]

# Where the authors' released code computes something else than what is right: the value that
# reproduces it. The corrected value is the field's own default.
OFFICIAL: dict[str, dict[str, Any]] = {
    "model": {
        "time_gaps": "seconds",
        "time_norm": "all_positions",
        "time_scale": "tanhshrink",
        "time_convolution": "plain",
        "time_dropout": 0.4,
        "norm_eps": 1e-12,
        "missing_modality": "white",
    },
    "data": {"target_time": "leaked"},
    "loss": {"padding_candidate": "scored", "duplicate_targets": "negatives"},
    "optimizer": {"decayed_parameters": "all", "accumulation": "sum"},
    "prepare": {"text_template": "official"},
}


class Section(BaseModel):
    """A group of settings: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PrepareConfig(Section):
    """Raw interactions and metadata to tables."""

    release: Literal["2018", "2023"] = Field(
        default="2018", description="which Amazon Reviews release the raw files are of"
    )
    k_core: int = Field(
        default=5, ge=1, description="keep users and items with at least k events, iteratively"
    )
    duplicates: Literal["exact", "keep", "pair"] = Field(
        default="exact",
        description="exact: drop rows equal in user, item, rating and time (the authors' policy); "
        "pair: keep a user's first event with an item",
    )
    require_metadata: bool = Field(default=True, description="drop items without a metadata line")
    require_image: bool = Field(
        default=False, description="drop items whose image could not be had, then k-core again"
    )
    text_template: Literal["clean", "official"] = Field(
        default="clean", description="clean: cleaned title, brand, description; official: theirs"
    )
    max_bad_lines: int = Field(
        default=0, ge=0, description="malformed lines per file that are set aside, not fatal"
    )


class ImagesConfig(Section):
    """How product images are fetched."""

    enabled: bool = Field(default=True, description="false: no request is made")
    engine: Literal["local", "ray"] = Field(
        default="local", description="ray: on a Ray cluster that shares the data folder"
    )
    workers: int = Field(
        default=4, ge=1, description="Ray: tasks at once; they share the allowed rate"
    )
    connections: int = Field(default=16, ge=1, le=256, description="requests under way at once")
    rate_per_host: float = Field(default=20.0, gt=0, description="requests per second and host")
    timeout_s: float = Field(default=15.0, gt=0, description="seconds for one request")
    attempts: int = Field(default=3, ge=1, le=10, description="tries per URL (temporary errors)")
    host_failures: int = Field(
        default=8,
        ge=1,
        description="URLs in a row without an answer after which a host is probed, then left alone",
    )
    max_bytes: int = Field(default=16_000_000, ge=1, description="bytes of one image file")
    max_pixels: int = Field(
        default=64_000_000, ge=1, le=89_478_485, description="pixels of one decoded image"
    )
    max_redirects: int = Field(default=3, ge=0, description="redirects followed per request")
    size_variants: bool = Field(
        default=True, description="after an item's URLs, try other sizes that Amazon serves of them"
    )
    placeholder_items: int = Field(
        default=50,
        ge=0,
        description="a picture that at least so many items share is a placeholder; 0: none is",
    )
    allow_private_hosts: bool = Field(
        default=False, description="true: also fetch from private and loopback addresses"
    )


class FeaturesConfig(Section):
    """Frozen encoders of the modalities."""

    text: str = Field(
        default="siglip-base", description="encoder of texts: a name, a hub id, a path, or none"
    )
    image: str = Field(
        default="siglip-base", description="encoder of images: a name, a hub id, a path, or none"
    )
    pooling: Literal["auto", "mean", "cls", "pooler"] = Field(
        default="auto",
        description="what of a model's last layer is its output; auto: what the model was made for",
    )
    batch_size: int = Field(default=32, ge=1, description="items encoded at once")
    shard_size: int = Field(default=2048, ge=1, description="items per Parquet shard")
    device: str = Field(default="auto", description="auto, cpu or cuda")
    precision: Literal["auto", "32-true", "bf16-true"] = Field(
        default="auto", description="of the encoders; auto: bf16-true on a GPU that has it"
    )
    engine: Literal["local", "ray"] = Field(
        default="local", description="ray: on a Ray cluster that shares the data folder"
    )
    devices: int = Field(
        default=1, ge=1, description="processes that encode on each machine; Ray: in all"
    )
    num_nodes: int = Field(default=1, ge=1, description="machines that encode")

    @model_validator(mode="after")
    def _ray_counts_machines(self) -> FeaturesConfig:
        if self.engine == "ray" and self.num_nodes > 1:
            raise ValueError(
                f"features.num_nodes is {self.num_nodes}: a Ray cluster knows its machines. Next: "
                "--set features.num_nodes=1, and features.devices=N for N encoders in all"
            )
        return self


class DataConfig(Section):
    """Prepared domains to batches."""

    data_dir: Path = Field(default=Path("data"), description="holds raw/, work/ and prepared/")
    modalities: tuple[str, ...] = Field(
        default=("text", "image"), min_length=1, description="streams, in the order of fusion"
    )
    encoders: dict[str, str] = Field(
        default={}, description="encoder key per modality, where a domain has several"
    )
    batch_size: int = Field(default=1024, ge=1, description="training samples per batch")
    eval_batch_size: int = Field(default=1024, ge=1, description="users ranked at once")
    target_time: Literal["hidden", "leaked"] = Field(
        default="hidden", description="leaked: the target's time stays in the input (authors' bug)"
    )
    query_time: Literal["none", "now"] = Field(
        default="none",
        description="now: the moment of recommending is an input, in training the target's time",
    )
    last_items: int | None = Field(
        default=None, ge=1, description="read only so many of the most recent items"
    )
    hidden_modalities: dict[str, float] = Field(
        default={}, description="per modality the share of its items that lose it, for studies"
    )
    hidden_seed: int = Field(default=0, ge=0, description="which items lose it, and are cold")
    cold_share: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of the items that nobody has bought before the test, for studies",
    )
    validation_share: float = Field(
        default=0.05,
        gt=0,
        le=1,
        description="pre-training: share of users who lose their last item to it",
    )

    @model_validator(mode="after")
    def _hidden_are_known(self) -> DataConfig:
        for modality, share in self.hidden_modalities.items():
            if modality not in self.modalities or not 0 <= share <= 1:
                raise ValueError(
                    f"data.hidden_modalities: found {share} of {modality!r}, allowed are shares "
                    f"of 0 to 1 of {', '.join(self.modalities)} (data.modalities). Next: "
                    f"--set 'data.hidden_modalities={{{self.modalities[-1]}: 0.5}}'"
                )
        return self


class ModelConfig(Section):
    """Architecture, in the names of Mamba-2; defaults are the paper's."""

    d_model: int = Field(default=256, ge=1)
    d_feed_forward: int = Field(default=256, ge=1)
    num_layers: int = Field(default=1, ge=1)
    d_state: int = Field(default=64, ge=1)
    num_groups: int = Field(default=8, ge=1, description="groups of B and C; divides the heads")
    d_conv: int = Field(default=4, ge=1)
    expand: int = Field(default=2, ge=1)
    head_dim: int = Field(default=64, ge=1, description="divides d_model * expand")
    max_len: int = Field(default=20, ge=2, description="most recent items that are read")
    item_dropout: float = Field(default=0.4, ge=0, lt=1)
    dropout: float = Field(default=0.4, ge=0, lt=1)
    time_dropout: float = Field(default=0.0, ge=0, lt=1, description="on time gaps; official: 0.4")
    temperature: float = Field(default=0.8, gt=0)
    use_item_bias: bool = Field(default=True, description="a learned vector per item, modality")
    use_time: bool = Field(default=True, description="false: plain SSD, no filter")
    use_feed_forward: bool = Field(default=True)
    per_position_time_gate: bool = Field(default=False, description="the authors' p2p_residual")
    name: Literal["mmm4rec", "sasrec", "gru4rec", "bsarec", "mamba4rec", "tim4rec"] = Field(
        default="mmm4rec", description="the model, or one that it is compared with"
    )
    item_inputs: Literal["ids", "features", "both"] = Field(
        default="both", description="what the models other than mmm4rec know of an item"
    )
    mixer: Literal["ssd", "attention"] = Field(
        default="ssd", description="attention: causal self-attention in place of the SSD"
    )
    num_attention_heads: int = Field(default=4, ge=1, description="divides d_model")
    share_ti_ssd: bool = Field(default=True, description="false: a TiSSD for each modality")
    time_filter: Literal[
        "full", "none", "gate", "source_only", "query_only", "not_adaptive", "not_learnable"
    ] = Field(
        default="full",
        description="how two time signals become one; none: their mean; gate: a learned mean; "
        "source_only, query_only: one signal filtered (text, image); not_adaptive: without the "
        "filter that depends on the signal; not_learnable: without the linear map behind it",
    )
    ssd_backend: Literal["auto", "quadratic", "recurrent", "mamba"] = Field(default="auto")
    skip: Literal["unscaled", "scaled_by_step"] = Field(
        default="scaled_by_step",
        description="D*step*x, as in the authors' code: a gap shows at its own item at once; "
        "unscaled: D*x as in Mamba-2",
    )
    time_gaps: Literal["log_units", "log_seconds", "log_days", "seconds"] = Field(
        default="log_units",
        description="log(1 + gap / unit) between real items, with a unit per head, from a second "
        "to a month, or with one for all; official: raw seconds",
    )
    time_norm: Literal["none", "real_positions", "all_positions"] = Field(
        default="none",
        description="over a sequence's gaps, which makes them relative to each other; "
        "official: all_positions, padding takes part in the statistics",
    )
    time_scale: Literal["one_plus", "tanhshrink"] = Field(
        default="one_plus",
        description="1 + MLP, and a filter that starts as a mean: alive at once; "
        "official: Tanhshrink, near 0",
    )
    time_convolution: Literal["residual", "plain"] = Field(
        default="residual",
        description="residual: the scaled gaps are added to what the two convolutions make of "
        "them; official: plain, which starts by shrinking them",
    )
    norm_eps: float = Field(default=1e-5, gt=0, description="of every norm; official: 1e-12")
    missing_modality: Literal["learned", "zero", "white"] = Field(
        default="learned", description="what stands for a missing text or image"
    )

    @property
    def d_inner(self) -> int:
        """Width E inside the SSD blocks."""
        return self.d_model * self.expand

    @property
    def num_heads(self) -> int:
        """Number of heads H of the SSD, or of the attention in its place."""
        if self.mixer == "attention":
            return self.num_attention_heads
        return self.d_inner // self.head_dim

    @model_validator(mode="after")
    def _seconds_are_normalised(self) -> ModelConfig:
        if self.use_time and self.time_gaps == "seconds" and self.time_norm == "none":
            raise ValueError(
                "model.time_gaps is seconds and model.time_norm none: raw seconds without a norm "
                "drown everything else. Next: --set model.time_norm=real_positions (or "
                "all_positions), or --set model.time_gaps=log_units"
            )
        return self

    @model_validator(mode="after")
    def _heads_fit(self) -> ModelConfig:
        if self.mixer == "attention":
            if self.d_model % self.num_attention_heads:
                raise ValueError(
                    f"num_attention_heads ({self.num_attention_heads}) must divide d_model "
                    f"({self.d_model})"
                )
            return self
        if self.d_inner % self.head_dim:
            raise ValueError(
                f"head_dim ({self.head_dim}) must divide d_model * expand ({self.d_inner})"
            )
        if self.num_heads % self.num_groups:
            raise ValueError(
                f"num_groups ({self.num_groups}) must divide the number of heads "
                f"d_model * expand / head_dim ({self.num_heads})"
            )
        return self


class LossConfig(Section):
    """Cross-entropy and its candidates."""

    candidates: Literal["full", "in_batch"] = Field(
        default="full", description="full catalogue, or the targets of the batch (pre-training)"
    )
    padding_candidate: Literal["excluded", "scored"] = Field(
        default="excluded", description="scored: item 0 is a class and is ranked (authors' code)"
    )
    duplicate_targets: Literal["masked", "negatives"] = Field(
        default="masked", description="in-batch: what equal targets of other rows are"
    )


class OptimizerConfig(Section):
    """NAdam with coupled L2, as in the authors' runs."""

    lr: float = Field(default=1e-4, gt=0)
    weight_decay: float = Field(default=0.005, ge=0)
    betas: tuple[float, float] = Field(default=(0.9, 0.999))
    eps: float = Field(default=1e-8, gt=0)
    momentum_decay: float = Field(default=0.004, ge=0)
    decayed_parameters: Literal["weights", "all"] = Field(
        default="weights",
        description="weights: not norms, biases, A, D, step and time; official: all",
    )
    accumulation: Literal["mean", "sum"] = Field(
        default="mean", description="over accumulated batches; official: sum"
    )


class TrainerConfig(Section):
    """The training loop."""

    max_epochs: int = Field(default=100, ge=1)
    early_stopping_patience: int = Field(default=10, ge=1, description="epochs without a new best")
    monitor: str = Field(default="val/ndcg@10", pattern=r"^val/(ndcg|recall)@\d+$")
    accumulate_grad_batches: int = Field(default=8, ge=1)
    precision: Literal["32-true", "bf16-mixed", "64-true"] = Field(default="32-true")
    matmul_precision: Literal["highest", "high", "medium"] = Field(default="highest")
    accelerator: Literal["auto", "cpu", "gpu"] = Field(default="auto")
    devices: int | Literal["auto"] = Field(default="auto")
    seed: int = Field(default=2020, ge=0)
    checkpoint_minutes: float = Field(
        default=5.0,
        ge=0,
        description="minutes between points inside an epoch from which a run can be carried on; "
        "0: one after every optimizer step",
    )


class WatchConfig(Section):
    """What is watched while a model trains; nothing here changes a result."""

    non_finite: bool = Field(
        default=True,
        description="stop at a loss or gradient that is not finite, and save the batch and weights",
    )
    throughput: bool = Field(
        default=True, description="samples per second and peak memory of each epoch"
    )
    dying_parameters: bool = Field(
        default=True,
        description="gradient, weights and weight decay of each part of the model, once an epoch; "
        "a part that dies is named in the log",
    )
    alignment: bool = Field(
        default=False,
        description="distance between the modalities behind each TiSSD, on one validation batch",
    )


class EvaluationConfig(Section):
    """What is reported."""

    cutoffs: tuple[int, ...] = Field(default=(10, 20, 50), min_length=1)
    bootstrap_samples: int = Field(default=1000, ge=100, description="resamples of users")

    @model_validator(mode="after")
    def _cutoffs_positive(self) -> EvaluationConfig:
        if min(self.cutoffs) < 1:
            raise ValueError(f"cutoffs are at least 1, found {list(self.cutoffs)}")
        return self


class Config(Section):
    """All settings of a run."""

    fidelity: Fidelity = Field(
        default="corrected", description="official: what the authors' released code computes"
    )
    prepare: PrepareConfig = Field(default=PrepareConfig())
    images: ImagesConfig = Field(default=ImagesConfig())
    features: FeaturesConfig = Field(default=FeaturesConfig())
    data: DataConfig = Field(default=DataConfig())
    model: ModelConfig = Field(default=ModelConfig())
    loss: LossConfig = Field(default=LossConfig())
    optimizer: OptimizerConfig = Field(default=OptimizerConfig())
    trainer: TrainerConfig = Field(default=TrainerConfig())
    evaluation: EvaluationConfig = Field(default=EvaluationConfig())
    watch: WatchConfig = Field(default=WatchConfig())

    @model_validator(mode="before")
    @classmethod
    def _apply_fidelity(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("fidelity") != "official":
            return values
        values = dict(values)
        for section, quirks in OFFICIAL.items():
            given = values.get(section, {})
            if isinstance(given, dict):
                values[section] = {**quirks, **given}
        return values

    @model_validator(mode="after")
    def _monitor_is_measured(self) -> Config:
        cutoff = int(self.trainer.monitor.rpartition("@")[2])
        if cutoff not in self.evaluation.cutoffs:
            raise ValueError(
                f"trainer.monitor ({self.trainer.monitor}) needs {cutoff} in evaluation.cutoffs "
                f"({list(self.evaluation.cutoffs)})"
            )
        return self

    def as_dict(self) -> dict[str, Any]:
        """Return plain data (for YAML, JSON and checkpoints)."""
        return self.model_dump(mode="json")


# What a checkpoint does not decide for the model that is fine-tuned from it.
_FREE_MODEL_FIELDS = {"use_item_bias", "item_dropout", "dropout", "time_dropout", "ssd_backend"}


def architecture(config: Config) -> dict[str, Any]:
    """Return the settings that a model must share with a checkpoint of `config`, as plain data."""
    model = config.model.model_dump(mode="json", exclude=_FREE_MODEL_FIELDS)
    data = {"query_time": config.data.query_time}
    return {"fidelity": config.fidelity, "model": model, "data": data}


_UNNAMED = {"checkpoint_minutes"}


def config_hash(config: Config, *parts: str) -> str:
    """Return 10 hex digits that name a configuration and whatever else `parts` says.

    What changes no result (what is watched, how often a run is saved) changes no name either.
    """
    values = config.model_dump(mode="json", exclude={"watch": True, "trainer": _UNNAMED})
    text = json.dumps([values, *parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]
