"""MMM4Rec: from a history of items to a user vector, and from items to the candidate matrix.

Multi-modal mamba for sequential recommendation, arXiv:2506.02916. Every difference between the
authors' released code and what is right is a field of `ModelConfig`.

Shape letters: B batch, R rows of a piece, L length, T positions of all pieces, N item ids,
I items with the padding item 0, D d_model.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from mmm4rec.batch import ItemCatalogue, SequenceBatch
from mmm4rec.config import ModelConfig
from mmm4rec.errors import DataError
from mmm4rec.layers.fourier import TimeFilter
from mmm4rec.layers.item_encoder import ItemEncoder
from mmm4rec.layers.layer import Layer
from mmm4rec.layers.time import TimeEncoder, TimeGate, TimeScale, TimeSignal
from mmm4rec.ops.precision import at_least_float32, full_precision

# Parameters under these prefixes have one row per item and fit only the catalogue they were made
# for. The second one is that of the models that this one is compared with.
DOMAIN_BOUND_PREFIXES = ("item_encoder.item_bias.", "item_encoder.item_table.")
# Histories that a CPU reads at once: their hidden states stay in its cache.
ROWS_AT_ONCE = 64


class MMM4Rec(nn.Module):
    """The whole model.

    Args:
        config: the architecture and its quirks.
        catalogue: the items; their features become buffers that no checkpoint holds. The order
            of its modalities is the order of fusion.

    Raises:
        ConfigError: the features do not allow what `config` asks for (see `ItemEncoder`).
    """

    def __init__(self, config: ModelConfig, catalogue: ItemCatalogue) -> None:
        super().__init__()
        modalities = tuple(catalogue.features)
        use_time = config.use_time and catalogue.has_time
        self.max_len = config.max_len
        self.item_encoder = ItemEncoder(config, catalogue)
        self.time_encoder = (
            TimeEncoder(config, num_modalities=len(modalities)) if use_time else None
        )
        self.layers = nn.ModuleList(
            Layer(config, modalities, use_time=use_time, is_last=index == config.num_layers - 1)
            for index in range(config.num_layers)
        )

    def forward(self, batch: SequenceBatch) -> Tensor:
        """Return user_BD: the last stream at each row's last item, not normalised.

        Args:
            batch: histories of at most `max_len` items; targets and users are not looked at.

        Raises:
            DataError: the histories are longer than the model reads.
        """
        length = checked_length(batch, self.max_len)
        pieces = split_by_length(batch.lengths_B, length)
        # For a backward pass an item is best encoded once, whichever pieces it stands in; without
        # one, less is held at a time.
        groups = [pieces] if torch.is_grad_enabled() else [[piece] for piece in pieces]
        users = [user_RD for group in groups for user_RD in self._read_pieces(batch, group)]
        order_B = torch.cat([rows_R for rows_R, _ in pieces])
        return torch.cat(users)[order_B.argsort()]

    def _read_pieces(
        self, batch: SequenceBatch, pieces: list[tuple[Tensor, int]]
    ) -> Iterator[Tensor]:
        """Yield the users of each piece, (R, D), in the order of its rows."""
        items_T = torch.cat([batch.items_BL[rows, :longest].flatten() for rows, longest in pieces])
        sizes = [len(rows_R) * longest for rows_R, longest in pieces]
        streams = zip(*(x_TD.split(sizes) for x_TD in self.item_encoder(items_T)), strict=True)
        for piece, (rows_R, longest) in zip(streams, pieces, strict=True):
            yield self._read(
                [x_TD.unflatten(0, (-1, longest)) for x_TD in piece], batch.take(rows_R)
            )

    def _read(self, streams: list[Tensor], batch: SequenceBatch) -> Tensor:
        time = self._read_time(batch)
        *inner, last = self.layers
        for layer in inner:
            streams, time = layer(streams, time)
        streams, _ = last(streams, time, batch.lengths_B - 1)
        user_BD: Tensor = streams[-1]
        return user_BD

    def _read_time(self, batch: SequenceBatch) -> TimeSignal | None:
        if self.time_encoder is None:
            return None
        signal: TimeSignal = self.time_encoder(
            batch.timestamps_BL, batch.lengths_B, batch.query_time_B
        )
        return signal

    @torch.no_grad()
    def shared_outputs(self, batch: SequenceBatch) -> list[Tensor]:
        """Return what each layer's TiSSD makes of the streams, (M, B, L, D) per layer.

        For watching: `forward` leaves out positions that nobody reads, this does not.
        """
        streams = self.item_encoder(batch.items_BL)
        time = self._read_time(batch)
        outputs: list[Tensor] = []
        for layer in self.layers:
            outputs.append(layer.get_submodule("ti_ssd")(torch.stack(streams), time)[0])
            streams, time = layer(streams, time)
        return outputs

    def item_matrix(self) -> Tensor:
        """Return items_ID for `score`, the padding item in row 0."""
        return self.item_encoder.candidates(None)

    def encode_items(self, ids_N: Tensor) -> Tensor:
        """Return items_ND, the rows of `item_matrix` for some ids."""
        return self.item_encoder.candidates(ids_N)

    def score(self, user_BD: Tensor, items_ID: Tensor) -> Tensor:
        """Return scores_BI: one matrix product, in float32 at least."""
        with full_precision(user_BD):
            return at_least_float32(user_BD) @ at_least_float32(items_ID).mT


def checked_length(batch: SequenceBatch, max_len: int) -> int:
    """Return how many positions a batch has.

    Raises:
        DataError: more than `max_len`, what the model reads.
    """
    length = batch.items_BL.shape[1]
    if length > max_len:
        raise DataError(
            f"the batch has sequences of {length} items, the model reads at most "
            f"{max_len} (model.max_len). Next: --set model.max_len={length}"
        )
    return length


def split_by_length(lengths_B: Tensor, width: int) -> list[tuple[Tensor, int]]:
    """Return rows of a batch that are read together, and how many positions they need.

    On a CPU rows of like length go together and only as far as their longest: most histories are
    much shorter than a batch is wide. A GPU reads all rows at once, it would wait for more work.

    Args:
        lengths_B: number of real items in each row.
        width: number of positions in the batch.

    >>> split_by_length(torch.tensor([3, 1, 2]), width=9)
    [(tensor([1, 2, 0]), 3)]
    """
    if lengths_B.is_cuda or torch.compiler.is_compiling():
        return [(torch.arange(len(lengths_B), device=lengths_B.device), width)]
    pieces = lengths_B.argsort(stable=True).split(ROWS_AT_ONCE)
    return [(rows_R, int(lengths_B[rows_R[-1]])) for rows_R in pieces]


def is_domain_bound(name: str) -> bool:
    """Return whether the parameter of that name has one row per item.

    >>> is_domain_bound("item_encoder.item_bias.text")
    True
    """
    return name.startswith(DOMAIN_BOUND_PREFIXES)


def weight_decay_parameters(model: nn.Module) -> set[str]:
    """Return the names of the parameters that L2 applies to under `decayed_parameters: weights`.

    The matrices of adapters, projections, recurrent and feed-forward blocks, and what is looked up
    by item or position. Not norms, biases, convolutions, decay, step and skip, and nothing of the
    time path: under coupled L2 it would shrink to 0 faster than the loss moves it; see "What
    differs" in the README.
    """
    time_path = {
        f"{prefix}.{name}"
        for prefix, module in model.named_modules()
        if isinstance(module, TimeEncoder | TimeScale | TimeGate | TimeFilter)
        for name, _ in module.named_parameters()
    }
    matrices = {
        f"{prefix}.{name}"
        for prefix, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Embedding | nn.GRU)
        for name, _ in module.named_parameters()
        if name.startswith("weight")
    }
    per_item = {name for name, _ in model.named_parameters() if is_domain_bound(name)}
    return (matrices | per_item) - time_path
