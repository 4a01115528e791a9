"""
The ways in which the decoder attends to the regions of the image.

Each is a class in [`ATTENTIONS`]: a layer `key` that is applied once per image, a `forward` that is called once per word, and
the `place` in the decoder that its result goes to.
"""

import torch
from torch import nn

from .configuration_cnnrnn import CnnRnnConfig


class CnnRnnAttention(nn.Module):
    """
    Soft attention to image regions with the gate beta (Show, Attend and Tell, sections 3.1.2, 4.2 and 4.2.1).

        e_i = w tanh(W_q h_{t-1} + W_k v_i),  alpha = softmax(e),  z = beta sum_i alpha_i v_i,  beta = sigmoid(W_b h_{t-1})

    Attributes:
        place: where the context z goes: "input" of the first layer, "cell" (the candidates of its memory), the input
            "between" two layers, or the "output", the words being predicted from it.
    """

    place = "input"
    has_gate = True

    def __init__(self, config: CnnRnnConfig):
        super().__init__()
        region_size = config.region_size or config.embedding_size
        self.query = nn.Linear(config.hidden_size, config.attention_size)
        self.key = nn.Linear(region_size, config.attention_size, bias=False)
        self.score = nn.Linear(config.attention_size, 1, bias=False)
        self.gate = None
        if self.has_gate and config.attention_gate != "none":
            self.gate = nn.Linear(config.hidden_size, 1 if config.attention_gate == "scalar" else region_size)
        self.activation = config.attention_activation

    def forward(
        self,
        hidden_state: torch.Tensor,
        regions: torch.Tensor,
        keys: torch.Tensor,
        region_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Weigh the regions by what the decoder is about to say.

        Args:
            hidden_state: state of a layer of the decoder, `(N, hidden_size)`. N = B * K, the K captions of one image in a
                row: they share its regions and keys.
            regions: `(B, num_regions, region_size)`.
            keys: `self.key(regions)`, `(B, num_regions, attention_size)`, the same at every step.
            region_mask: `(B, num_regions)`, `False` where a region is padding, which gets no weight.

        Returns:
            The context `(N, region_size)` and the attention weights `(N, num_regions)`.
        """
        query = self.query(hidden_state).unflatten(0, (regions.shape[0], -1))  # (B, K, A)
        # activated in place: (B, K, R, A) is by far the largest tensor of a step
        scores = self.score(activate_(query[:, :, None] + keys[:, None], self.activation)).squeeze(-1)  # (B, K, R)
        weights = region_weights(scores, regions.dtype, region_mask)
        context = (weights @ regions).flatten(0, 1)
        if self.gate is not None:
            context = torch.sigmoid(self.gate(hidden_state)) * context
        return context, weights.flatten(0, 1)


class CnnRnnCellAttention(CnnRnnAttention):
    """
    Attention of Att2in (https://arxiv.org/abs/1612.00563, section 2.2): no gate, and the gates of the LSTM do not see it.

        c_t = sigmoid(i_t) candidate(W_x x_t + W_h h_{t-1} + W_z z_t + b) + sigmoid(f_t) c_{t-1}
    """

    place = "cell"
    has_gate = False

    def __init__(self, config: CnnRnnConfig):
        super().__init__(config)
        num_candidates = 2 if config.rnn_type == "lstm_maxout" else 1
        self.context = nn.Linear(config.region_size or config.embedding_size, num_candidates * config.hidden_size)


class CnnRnnTopDownAttention(CnnRnnAttention):
    """
    Attention of Up-Down (https://arxiv.org/abs/1707.07998): between an attention LSTM and a language LSTM.

        h1_t = LSTM([w_t; mean_i v_i; h2_{t-1}], h1_{t-1}),  z_t by h1_t without a gate,  h2_t = LSTM([h1_t; z_t], h2_{t-1})
    """

    place = "between"
    has_gate = False


class CnnRnnAdaptiveAttention(nn.Module):
    """
    Adaptive attention with a visual sentinel (Lu et al., https://arxiv.org/abs/1612.01887).

        s_t = sigmoid(W_x x_t + W_h h_{t-1}) tanh(c_t)
        e_i = w tanh(W_v v_i + W_g h_t),  e_s = w tanh(W_s s_t + W_g h_t),  [alpha; beta] = softmax([e; e_s])
        output = sum_i alpha_i v_i + beta s_t + h_t

    `"adaptive_mlp"` is what the authors' code computes (as does AdaAtt of self-critical.pytorch): s_t goes through a layer
    with ReLU, h_t through one with tanh, and so does the output.
    """

    place = "output"

    def __init__(self, config: CnnRnnConfig):
        super().__init__()
        region_size, size = config.region_size or config.embedding_size, config.hidden_size
        input_size = config.embedding_size + region_size * config.has_image_input
        self.query = nn.Linear(region_size, config.attention_size)
        self.key = nn.Linear(region_size, config.attention_size, bias=False)
        self.score = nn.Linear(config.attention_size, 1, bias=False)
        self.sentinel_input = nn.Linear(input_size, size)
        self.sentinel_hidden = nn.Linear(size, size, bias=False)
        self.sentinel_key = nn.Linear(region_size, config.attention_size)
        self.sentinel_layer: nn.Linear | None = None
        self.hidden_layer: nn.Linear | None = None
        self.output_layer: nn.Linear | None = None
        if config.attention_type == "adaptive_mlp":
            self.sentinel_layer = nn.Linear(size, region_size)
            self.hidden_layer = nn.Linear(size, region_size)
            self.output_layer = nn.Linear(region_size, size)

    def forward(
        self,
        inputs: torch.Tensor,
        previous: torch.Tensor,
        state: tuple[torch.Tensor, ...],
        regions: torch.Tensor,
        keys: torch.Tensor,
        region_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Weigh the regions, and beside them what the decoder knows without looking.

        Args:
            inputs: what the LSTM has read at this step, `(N, input_size)`.
            previous: its state h before, `(N, hidden_size)`.
            state: `(h, c)` after, each `(N, hidden_size)`.
            regions, keys, region_mask: as in [`CnnRnnAttention`].

        Returns:
            What the words are predicted from `(N, hidden_size)`, and the attention weights `(N, num_regions)`; what they
            lack to 1 is the weight of the sentinel.
        """
        hidden, memory = state
        gate = torch.sigmoid(self.sentinel_input(inputs) + self.sentinel_hidden(previous))
        sentinel = gate * torch.tanh(memory)
        if self.sentinel_layer is not None and self.hidden_layer is not None:
            sentinel, hidden = torch.relu(self.sentinel_layer(sentinel)), torch.tanh(self.hidden_layer(hidden))
        query = self.query(hidden)
        compared = query.unflatten(0, (regions.shape[0], -1))[:, :, None] + keys[:, None]
        scores = self.score(compared.tanh_()).squeeze(-1)  # (B, K, R)
        sentinel_score = self.score(torch.tanh(query + self.sentinel_key(sentinel)))
        context, weights = weigh_with_sentinel(scores, sentinel_score, regions, sentinel, region_mask)
        output = context + hidden
        if self.output_layer is not None:
            output = torch.tanh(self.output_layer(output))
        return output, weights


def weigh_with_sentinel(
    scores: torch.Tensor,
    sentinel_score: torch.Tensor,
    regions: torch.Tensor,
    sentinel: torch.Tensor,
    region_mask: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Average the regions `(B, R, region_size)` and a sentinel `(N, region_size)` by the softmax over their scores.

    Args:
        scores: of the regions, `(B, K, R)`.
        sentinel_score: `(N, 1)`.

    Returns:
        The average `(N, region_size)` and the weights of the regions `(N, R)`.
    """
    is_seen = None
    if region_mask is not None:
        is_seen = torch.nn.functional.pad(region_mask, (0, 1), value=True)
    all_scores = torch.cat([scores, sentinel_score.unflatten(0, scores.shape[:2])], dim=-1)
    weights, sentinel_weight = region_weights(all_scores, regions.dtype, is_seen).split([scores.shape[-1], 1], dim=-1)
    context = (weights @ regions).flatten(0, 1) + sentinel_weight.flatten(0, 1) * sentinel
    return context, weights.flatten(0, 1)


def activate_(values: torch.Tensor, activation: str) -> torch.Tensor:
    """Apply `"tanh"` or `"relu"` in place."""
    return values.tanh_() if activation == "tanh" else values.relu_()


def region_weights(scores: torch.Tensor, dtype: torch.dtype, region_mask: torch.Tensor | None = None) -> torch.Tensor:
    """
    Compute the softmax over regions, the last dimension; in float32 where `scores` are bfloat16 or float16.

    Args:
        scores: `(B, K, num_regions)`.
        region_mask: `(B, num_regions)`, `False` where a region gets no weight.
    """
    if region_mask is not None:
        scores = scores.masked_fill(~region_mask[:, None], -torch.inf)
    return scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(dtype)


# values of `config.attention_type` but "none"
ATTENTIONS = {
    "additive": CnnRnnAttention,
    "att2in": CnnRnnCellAttention,
    "adaptive": CnnRnnAdaptiveAttention,
    "adaptive_mlp": CnnRnnAdaptiveAttention,
    "up_down": CnnRnnTopDownAttention,
}

__all__ = [
    "ATTENTIONS",
    "CnnRnnAdaptiveAttention",
    "CnnRnnAttention",
    "CnnRnnCellAttention",
    "CnnRnnTopDownAttention",
    "activate_",
    "region_weights",
    "weigh_with_sentinel",
]
