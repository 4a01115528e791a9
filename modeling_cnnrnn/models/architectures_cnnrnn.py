"""The captioners of the papers, as options of the configuration."""

from .error_messages_cnnrnn import shown


# By name, from the oldest. The last three are the models of https://github.com/ruotianluo/self-critical.pytorch with the same
# names, which embed words and features with ReLU.
ARCHITECTURES: dict[str, dict] = {
    # Deep Visual-Semantic Alignments, https://arxiv.org/abs/1412.2306, its multimodal RNN
    "dvsa": {"rnn_type": "rnn_relu", "image_injection": "bias_first_step", "attention_type": "none"},
    # https://github.com/karpathy/neuraltalk, its generators "lstm" and "rnn"
    "neuraltalk": {"rnn_type": "lstm_linear_output", "image_injection": "first_token", "attention_type": "none"},
    "neuraltalk_rnn": {"rnn_type": "rnn_relu", "image_injection": "bias_every_step", "attention_type": "none"},
    # Show and Tell, https://arxiv.org/abs/1411.4555, equations 4 to 12; the authors' code is `neuraltalk2`
    "nic": {"rnn_type": "lstm_linear_output", "image_injection": "first_token", "attention_type": "none"},
    # https://github.com/karpathy/neuraltalk2
    "neuraltalk2": {"rnn_type": "lstm", "image_injection": "first_token", "attention_type": "none"},
    # Show, Attend and Tell, https://arxiv.org/abs/1502.03044, section 3.1.2; the authors' code has `deep_output="tanh"`
    "show_attend_tell": {
        "rnn_type": "lstm",
        "image_injection": "initial_state",
        "attention_type": "additive",
        "deep_output": "linear",
        "feature_projection": "none",
    },
    # Self-critical Sequence Training, https://arxiv.org/abs/1612.00563, sections 2.1 and 2.2
    "fc": {"rnn_type": "lstm_maxout", "image_injection": "first_token", "attention_type": "none"},
    "att2in": {
        "rnn_type": "lstm_maxout",
        "image_injection": "none",
        "attention_type": "att2in",
        "feature_projection": "none",
    },
    # Knowing When to Look, https://arxiv.org/abs/1612.01887
    "adaptive": {
        "rnn_type": "lstm",
        "image_injection": "bias_every_step",
        "attention_type": "adaptive",
        "feature_projection": "relu",
        "image_projection": True,
    },
    # Bottom-Up and Top-Down Attention, https://arxiv.org/abs/1707.07998, section 3.2
    "up_down": {
        "rnn_type": "lstm",
        "image_injection": "bias_every_step",
        "attention_type": "up_down",
        "num_hidden_layers": 2,
        "feature_projection": "none",
    },
    "att2in2": {
        "rnn_type": "lstm_maxout",
        "image_injection": "none",
        "attention_type": "att2in",
        "feature_projection": "relu",
        "embedding_activation": "relu",
    },
    "adaatt": {
        "rnn_type": "lstm",
        "image_injection": "bias_every_step",
        "attention_type": "adaptive_mlp",
        "feature_projection": "relu",
        "image_projection": True,
        "embedding_activation": "relu",
    },
    "updown": {
        "rnn_type": "lstm",
        "image_injection": "bias_every_step",
        "attention_type": "up_down",
        "num_hidden_layers": 2,
        "feature_projection": "relu",
        "image_projection": True,
        "embedding_activation": "relu",
    },
}


def architecture_options(name: str) -> dict:
    """
    Look up the options of a published captioner.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"`architecture` is {shown(name)}: pass one of {', '.join(ARCHITECTURES)}.")
    return dict(ARCHITECTURES[name])


__all__ = ["ARCHITECTURES", "architecture_options"]
