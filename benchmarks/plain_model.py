"""MMM4Rec formulated plainly, as released code of this kind is: what the model is measured against.

One module per equation, both modalities one after the other, every position of every row, the
whole decay tensor, `nn.Conv1d`, one product per modality and a stacked sum for the scores. It
computes what `fidelity: official` computes. Names are those of the authors' checkpoints, so that
`mmm4rec.official` names its weights.

Shape letters: B batch, L max_len, D d_model, E d_inner, H heads, P head width, G groups, N state,
I items with the padding item 0, K a second index over positions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmm4rec.config import ModelConfig
from mmm4rec.model import MMM4Rec
from mmm4rec.official import FUSION_FACTOR, to_official


def segment_sums(x_BHL: Tensor) -> Tensor:
    """Return the sums of `x` over k+1..l for k <= l and -inf above, (B, H, L, K)."""
    length = x_BHL.shape[-1]
    repeated = x_BHL[..., None].expand(*x_BHL.shape, length)
    below = torch.ones(length, length, dtype=torch.bool, device=x_BHL.device).tril(-1)
    sums = repeated.masked_fill(~below, 0).cumsum(-2)
    kept = torch.ones(length, length, dtype=torch.bool, device=x_BHL.device).tril()
    return sums.masked_fill(~kept, -torch.inf)


def einsum_ssd(
    x_BLHP: Tensor, step_BLH: Tensor, A_H: Tensor, B_BLGN: Tensor, C_BLGN: Tensor, D_H: Tensor
) -> Tensor:
    """Run the state space in its quadratic form; the skip term sees the input after the step."""
    heads_per_group = x_BLHP.shape[2] // B_BLGN.shape[2]
    B_BLHN = B_BLGN.repeat_interleave(heads_per_group, dim=2)
    C_BLHN = C_BLGN.repeat_interleave(heads_per_group, dim=2)
    x_BLHP = x_BLHP * step_BLH[..., None]
    decay_BHLK = torch.exp(segment_sums((A_H * step_BLH).permute(0, 2, 1)))
    y_BLHP = torch.einsum("blhn,bkhn,bhlk,bkhp->blhp", C_BLHN, B_BLHN, decay_BHLK, x_BLHP)
    return y_BLHP + D_H[:, None] * x_BLHP


class CausalConv(nn.Conv1d):
    """A depthwise convolution over positions, cut on the right, and SiLU."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(channels, channels, width, groups=channels, padding=width - 1)

    def forward(self, x_BLC: Tensor) -> Tensor:
        y_BCL = super().forward(x_BLC.transpose(1, 2))
        return F.silu(y_BCL[..., : x_BLC.shape[1]].transpose(1, 2))


class GatedNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, y_BLE: Tensor, z_BLE: Tensor) -> Tensor:
        gated = y_BLE * F.silu(z_BLE)
        return gated * torch.rsqrt(gated.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class TimedSSD(nn.Module):
    """What both blocks have: decay, step and skip, the factor of time, gated norm, projection."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        heads, length = config.num_heads, config.max_len
        self.head_dim, self.d_state = config.head_dim, config.d_state
        self.A_log = nn.Parameter(torch.zeros(heads))
        self.D = nn.Parameter(torch.ones(heads))
        self.dt_bias = nn.Parameter(torch.zeros(heads))
        self.norm = GatedNorm(config.d_inner, config.norm_eps)
        self.out_proj = nn.Linear(config.d_inner, config.d_model)
        if config.use_time:
            self.mlp4time_scale = nn.Sequential(
                nn.Dropout(config.time_dropout),
                nn.Linear(length, length),
                nn.SiLU(),
                nn.Linear(length, length),
                nn.Tanhshrink(),
            )
            self.conv1d4time_1 = CausalConv(heads, config.d_conv)
            self.conv1d4time_2 = CausalConv(heads, config.d_conv)

    def time_factor(self, time_BHL: Tensor) -> Tensor:
        scaled_BLH = (time_BHL * self.mlp4time_scale(time_BHL)).transpose(1, 2)
        return self.conv1d4time_2(self.conv1d4time_1(scaled_BLH))

    def mix(
        self,
        x_BLE: Tensor,
        B_BLS: Tensor,
        C_BLS: Tensor,
        dt_BLH: Tensor,
        z_BLE: Tensor,
        r_BLH: Tensor | None,
    ) -> Tensor:
        dt_BLH = dt_BLH if r_BLH is None else dt_BLH * r_BLH
        y_BLHP = einsum_ssd(
            x_BLE.unflatten(-1, (-1, self.head_dim)),
            F.softplus(dt_BLH + self.dt_bias),
            -torch.exp(self.A_log),
            B_BLS.unflatten(-1, (-1, self.d_state)),
            C_BLS.unflatten(-1, (-1, self.d_state)),
            self.D,
        )
        return self.out_proj(self.norm(y_BLHP.flatten(-2), z_BLE))


class TiSSD(TimedSSD):
    """The block that both modalities share."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        inner, groups = config.d_inner, config.num_groups * config.d_state
        self.widths = [inner, inner + 2 * groups, config.num_heads]
        self.conv_widths = [inner, groups, groups]
        self.in_proj = nn.Linear(config.d_model, sum(self.widths))
        self.conv1d_1 = CausalConv(self.widths[1], config.d_conv)
        if config.use_time:
            self.time_gate_residual = nn.Sequential(
                nn.Dropout(config.time_dropout),
                nn.Linear(config.max_len, config.max_len if config.per_position_time_gate else 1),
                nn.Sigmoid(),
            )
            self.time_layer_norm = nn.LayerNorm(config.max_len, eps=config.norm_eps)

    def forward(self, u_BLD: Tensor, time_BHL: Tensor | None) -> tuple[Tensor, Tensor | None]:
        z_BLE, xBC, dt_BLH = self.in_proj(u_BLD).split(self.widths, dim=-1)
        x_BLE, B_BLS, C_BLS = self.conv1d_1(xBC).split(self.conv_widths, dim=-1)
        if time_BHL is None:
            return self.mix(x_BLE, B_BLS, C_BLS, dt_BLH, z_BLE, None), None
        r_BLH = self.time_factor(time_BHL)
        out_BLD = self.mix(x_BLE, B_BLS, C_BLS, dt_BLH, z_BLE, r_BLH)
        gate = self.time_gate_residual(time_BHL)
        mixed_BHL = gate * time_BHL + (1 - gate) * r_BLH.transpose(1, 2)
        return out_BLD, self.time_layer_norm(mixed_BHL)


class TiCoSSD(TimedSSD):
    """The block in which the image stream asks the text stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        inner, groups = config.d_inner, config.num_groups * config.d_state
        self.widths, self.conv_widths = [inner + groups, config.num_heads], [inner, groups]
        self.u_in_proj = nn.Linear(config.d_model, sum(self.widths))
        self.q_in_proj = nn.Linear(config.d_model, groups)
        self.z_in_proj = nn.Linear(config.d_model, inner)
        self.u_conv1d = CausalConv(inner + groups, config.d_conv)
        self.q_conv1d = CausalConv(groups, config.d_conv)

    def forward(self, q_BLD: Tensor, u_BLD: Tensor, time_BHL: Tensor | None) -> Tensor:
        xB, dt_BLH = self.u_in_proj(u_BLD).split(self.widths, dim=-1)
        x_BLE, B_BLS = self.u_conv1d(xB).split(self.conv_widths, dim=-1)
        C_BLS = self.q_conv1d(self.q_in_proj(q_BLD))
        z_BLE = self.z_in_proj(q_BLD + u_BLD)
        r_BLH = None if time_BHL is None else self.time_factor(time_BHL)
        return self.mix(x_BLE, B_BLS, C_BLS, dt_BLH, z_BLE, r_BLH)


class ComplexLinear(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.real, self.imag = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        real = self.real(x.real) - self.imag(x.imag)
        return torch.complex(real, self.imag(x.real) + self.real(x.imag))


class FeedForward(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.d_model, config.d_feed_forward)
        self.fc2 = nn.Linear(config.d_feed_forward, config.d_model)
        self.layer_norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BLD: Tensor) -> Tensor:
        hidden = self.dropout(F.hardswish(self.fc1(x_BLD)))
        return self.layer_norm(self.dropout(self.fc2(hidden)) + x_BLD)


class TextLayer(nn.Module):
    def __init__(self, config: ModelConfig, ssd: TiSSD) -> None:
        super().__init__()
        self.ssd = ssd
        self.layer_norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        if config.use_feed_forward:
            self.ffn = FeedForward(config)

    def forward(self, x_BLD: Tensor, time_BHL: Tensor | None) -> tuple[Tensor, Tensor | None]:
        mixed_BLD, time_BHL = self.ssd(x_BLD, time_BHL)
        hidden_BLD = self.layer_norm(self.dropout(mixed_BLD) + x_BLD)
        return self.ffn(hidden_BLD) if hasattr(self, "ffn") else hidden_BLD, time_BHL


class ImageLayer(nn.Module):
    def __init__(self, config: ModelConfig, ssd: TiSSD) -> None:
        super().__init__()
        self.ssd, self.co_ssd = ssd, TiCoSSD(config)
        self.layer_norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.co_layer_norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        if config.use_time:
            bins = config.max_len // 2 + 1
            # Crossed in the authors' checkpoints too: "text" filters the image stream's signal.
            self.text_complex_weight = nn.Sequential(ComplexLinear(bins))
            self.vision_complex_weight = nn.Sequential(ComplexLinear(bins))
            self.co_complex_weight = nn.Sequential(ComplexLinear(bins))
        if config.use_feed_forward:
            self.ffn = FeedForward(config)

    def forward(
        self,
        text_BLD: Tensor,
        image_BLD: Tensor,
        text_time_BHL: Tensor | None,
        image_time_BHL: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        mixed_BLD, image_time_BHL = self.ssd(image_BLD, image_time_BHL)
        query_BLD = self.layer_norm(self.dropout(mixed_BLD) + image_BLD)
        time_BHL = self.filter(text_time_BHL, image_time_BHL)
        answer_BLD = self.dropout(self.co_ssd(query_BLD, text_BLD, time_BHL))
        fused_BLD = self.co_layer_norm(answer_BLD + query_BLD + text_BLD)
        return self.ffn(fused_BLD) if hasattr(self, "ffn") else fused_BLD, image_time_BHL

    def filter(self, text_BHL: Tensor | None, image_BHL: Tensor | None) -> Tensor | None:
        if text_BHL is None or image_BHL is None:
            return None
        text_BHW = torch.fft.rfft(text_BHL, norm="ortho")
        image_BHW = torch.fft.rfft(image_BHL, norm="ortho")
        mixed_BHW = self.text_complex_weight(image_BHW) * image_BHW
        mixed_BHW = mixed_BHW + self.vision_complex_weight(text_BHW) * text_BHW
        filtered_BHW = self.co_complex_weight(mixed_BHW)
        return torch.fft.irfft(filtered_BHW, n=text_BHL.shape[-1], norm="ortho")


class PlainModel(nn.Module):
    """The whole model.

    Args:
        config: an architecture of `fidelity: official`.
        text_IF: text features, row 0 the padding item; cast to float32.
        image_IF: image features, likewise.
    """

    text_embedding: Tensor
    vision_embedding: Tensor

    def __init__(self, config: ModelConfig, text_IF: Tensor, image_IF: Tensor) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("text_embedding", text_IF.float(), persistent=False)
        self.register_buffer("vision_embedding", image_IF.float(), persistent=False)
        width, eps = config.d_model, config.norm_eps
        self.text_adapter = nn.Sequential(nn.Linear(text_IF.shape[1], width))
        self.vision_adapter = nn.Sequential(nn.Linear(image_IF.shape[1], width))
        if config.use_item_bias:
            self.text_item_embedding_bias = nn.Parameter(torch.zeros(len(text_IF), width))
            self.vision_item_embedding_bias = nn.Parameter(torch.zeros(len(image_IF), width))
        self.text_in_layer_norm = nn.LayerNorm(width, eps=eps)
        self.vision_in_layer_norm = nn.LayerNorm(width, eps=eps)
        self.item_dropout = nn.Dropout(config.item_dropout)
        self.time_dropout = nn.Dropout(config.time_dropout)
        if config.use_time:
            self.layer_norm_time = nn.LayerNorm(config.max_len, eps=eps)
        shared = [TiSSD(config) for _ in range(config.num_layers)]
        self.encoder_ssd_layers = nn.ModuleList(TextLayer(config, ssd) for ssd in shared)
        self.decoder_ssd_layers = nn.ModuleList(ImageLayer(config, ssd) for ssd in shared)

    @classmethod
    def like(cls, model: MMM4Rec, config: ModelConfig) -> PlainModel:
        """Return the plain formulation of a model of text and image, with equal weights."""
        text, image = (model.item_encoder.modalities[name] for name in ("text", "image"))
        plain = cls(config, text.values_IF, image.values_IF)
        weights = to_official(model.state_dict(), config)
        del weights[FUSION_FACTOR]
        plain.load_state_dict(weights)
        return plain

    def forward(self, items_BL: Tensor, timestamps_BL: Tensor, lengths_B: Tensor) -> Tensor:
        """Return user_BD; rows have max_len positions."""
        text_BLD = self.text_adapter(self.text_embedding[items_BL])
        image_BLD = self.vision_adapter(self.vision_embedding[items_BL])
        if self.config.use_item_bias:
            text_BLD = text_BLD + self.text_item_embedding_bias[items_BL]
            image_BLD = image_BLD + self.vision_item_embedding_bias[items_BL]
        text_BLD = self.text_in_layer_norm(self.item_dropout(text_BLD))
        image_BLD = self.vision_in_layer_norm(self.item_dropout(image_BLD))
        image_time_BHL, text_time_BHL = self.time(timestamps_BL), self.time(timestamps_BL)
        for text_layer, image_layer in zip(
            self.encoder_ssd_layers, self.decoder_ssd_layers, strict=True
        ):
            text_BLD, text_time_BHL = text_layer(text_BLD, text_time_BHL)
            image_BLD, image_time_BHL = image_layer(
                text_BLD, image_BLD, text_time_BHL, image_time_BHL
            )
        return image_BLD[torch.arange(len(lengths_B), device=lengths_B.device), lengths_B - 1]

    def time(self, timestamps_BL: Tensor) -> Tensor | None:
        if not self.config.use_time:
            return None
        gaps_BL = F.pad(timestamps_BL[:, 1:] - timestamps_BL[:, :-1], (1, 0))
        gaps_BL = gaps_BL.to(self.layer_norm_time.weight.dtype)
        signal_BL = self.layer_norm_time(self.time_dropout(gaps_BL))
        return signal_BL[:, None].repeat(1, self.config.num_heads, 1)

    def scores(self, user_BD: Tensor) -> Tensor:
        """Return scores_BI: the catalogue is encoded, then multiplied once per modality."""
        text_ID = self.text_adapter(self.text_embedding)
        image_ID = self.vision_adapter(self.vision_embedding)
        if self.config.use_item_bias:
            text_ID = text_ID + self.text_item_embedding_bias
            image_ID = image_ID + self.vision_item_embedding_bias
        by_text_BI = user_BD @ F.normalize(text_ID, dim=-1).T
        by_image_BI = user_BD @ F.normalize(image_ID, dim=-1).T
        return torch.stack([by_text_BI, by_image_BI]).sum(0) / self.config.temperature

    def loss(self, user_BD: Tensor, targets_B: Tensor) -> Tensor:
        """Return the mean cross-entropy over all items, the padding item among them."""
        return F.cross_entropy(self.scores(user_BD), targets_B)

    def ranks(self, user_BD: Tensor, targets_B: Tensor) -> Tensor:
        """Return the place of each target, 0 the best, by sorting all scores."""
        order_BI = torch.argsort(self.scores(user_BD), dim=-1, descending=True)
        return (order_BI == targets_B[:, None]).nonzero()[:, 1]
