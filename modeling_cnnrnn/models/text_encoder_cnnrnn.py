"""
The text encoder of the alignment: each word of a sentence in its context.

    input_ids (N, T) -> embeddings (N, T, W) -> RNN in both directions, window or nothing -> words (N, T, E)

A bidirectional RNN reads the words alone, one after another: padding, beginning and end of a sentence are left out.
"""

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from .base_cnnrnn import CnnRnnPreTrainedModel
from .configuration_alignment_cnnrnn import CnnRnnAlignmentConfig


WINDOW_SIZE = 5  # two words on each side: the noun phrase, and not the rest of the sentence


class CnnRnnTextEncoder(CnnRnnPreTrainedModel):
    """Word vectors, and what the context of a word adds to them."""

    config: CnnRnnAlignmentConfig
    main_input_name = "input_ids"
    input_modalities = ["text"]  # noqa: RUF012

    def __init__(self, config: CnnRnnAlignmentConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.word_embedding_size, config.pad_token_id)
        self.word_dropout = nn.Dropout1d(config.word_dropout)
        self.context = CONTEXTS[config.rnn_type](config)
        self.skip = (
            nn.Linear(config.word_embedding_size, config.embedding_size, bias=False) if config.add_word_skip else None
        )
        self.post_init()

    def get_input_embeddings(self):
        return self.embed_tokens

    def set_input_embeddings(self, value):
        self.embed_tokens = value

    def word_mask(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """
        Mark the words among tokens: all but padding, beginning and end.

        Args:
            input_ids: `(N, T)`.
            attention_mask: `(N, T)`, 0 where a token is padding.

        Raises:
            ValueError: a token is outside the vocabulary, or a sentence has no word that the vocabulary knows.
        """
        config = self.config
        eos_token_ids = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        mask = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        for token in (config.pad_token_id, config.bos_token_id, *eos_token_ids):
            if token is not None:
                mask = mask & (input_ids != token)
        if torch.compiler.is_compiling():
            return mask
        if input_ids.numel() and not 0 <= int(input_ids.min()) <= int(input_ids.max()) < config.vocab_size:
            wrong = int(input_ids.max()) if int(input_ids.max()) >= config.vocab_size else int(input_ids.min())
            raise ValueError(
                f"`input_ids` holds {wrong}, outside the vocabulary of {config.vocab_size} words: check the tokenizer."
            )
        is_known = mask if config.unk_token_id is None else mask & (input_ids != config.unk_token_id)
        unknown = (~is_known.any(dim=1)).nonzero().flatten().tolist()
        if unknown:
            raise ValueError(
                f"`input_ids[{unknown[0]}]` has no word that the vocabulary knows ({len(unknown)} of {len(input_ids)} "
                "sentences): leave it out, or say it in other words."
            )
        return mask

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None):
        """
        Embed words.

        Args:
            input_ids: `(N, T)`, padded anywhere.
            attention_mask: `(N, T)`, 0 where a token is padding.

        Returns:
            The words `(N, T, embedding_size)`, 0 where there is none, and which tokens are words, `(N, T)`.

        Raises:
            ValueError: as [`~CnnRnnTextEncoder.word_mask`].
        """
        if input_ids.ndim != 2 or input_ids.shape[0] == 0:
            raise ValueError(f"`input_ids` has shape {tuple(input_ids.shape)}: pass (num_sentences, length).")
        mask = self.word_mask(input_ids, attention_mask)
        # words move to the front, in their order, and back at the end
        order = (~mask).int().argsort(dim=1, stable=True)
        lengths = mask.sum(dim=1)
        ids = input_ids.gather(1, order)[:, : int(lengths.max())]
        is_word = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        embedded = self.word_dropout(self.embed_tokens(ids).transpose(1, 2)).transpose(1, 2)
        embedded = embedded * is_word[..., None]
        # torch's fused recurrent layers know no bfloat16 autocast on the CPU
        with torch.autocast(embedded.device.type, enabled=False):
            words = self.context(embedded, is_word, lengths)
            if self.skip is not None:
                words = words + self.skip(embedded)
        words = nn.functional.pad(words, (0, 0, 0, input_ids.shape[1] - ids.shape[1]))
        words = words.gather(1, order.argsort(dim=1)[..., None].expand_as(words))
        return words * mask[..., None], mask


class WordAlone(nn.Module):
    """Project each word by itself."""

    def __init__(self, config: CnnRnnAlignmentConfig):
        super().__init__()
        self.projection = nn.Linear(config.word_embedding_size, config.embedding_size)

    def forward(self, words: torch.Tensor, is_word: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """
        Args:
            words: `(N, T, word_embedding_size)`, words first, 0 after the last one.
            is_word: `(N, T)`.
            lengths: number of words, `(N,)`.

        Returns:
            `(N, T, embedding_size)`; what is there after the last word has no meaning.
        """
        return self.projection(words)


class WordWindow(nn.Module):
    """Read each word with its neighbours, in one convolution."""

    def __init__(self, config: CnnRnnAlignmentConfig):
        super().__init__()
        self.convolution = nn.Conv1d(
            config.word_embedding_size, 2 * config.hidden_size, WINDOW_SIZE, padding=WINDOW_SIZE // 2
        )
        self.dropout = nn.Dropout(config.dropout)
        self.projection = nn.Linear(2 * config.hidden_size, config.embedding_size)

    def forward(self, words: torch.Tensor, is_word: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """See [`WordAlone`]."""
        states = self.convolution(words.transpose(1, 2)).relu().transpose(1, 2)
        return self.projection(self.dropout(states))


class BidirectionalReluRNN(nn.Module):
    """
    The bidirectional RNN of Deep Visual-Semantic Alignments (equations 2 to 6), f = ReLU:

        e_t = f(W_e x_t + b_e), hf_t = f(e_t + W_f hf_t-1 + b_f), hb_t = f(e_t + W_b hb_t+1 + b_b), s_t = f(W_d (hf_t + hb_t) + b_d)
    """

    def __init__(self, config: CnnRnnAlignmentConfig):
        super().__init__()
        self.input = nn.Linear(config.word_embedding_size, config.hidden_size)
        self.forward_recurrence = nn.Linear(config.hidden_size, config.hidden_size)
        self.backward_recurrence = nn.Linear(config.hidden_size, config.hidden_size)
        self.projection = nn.Linear(config.hidden_size, config.embedding_size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, words: torch.Tensor, is_word: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """See [`WordAlone`]."""
        inputs = self.dropout(self.input(words).relu())
        forward = _relu_states(inputs, is_word, self.forward_recurrence)
        backward = _relu_states(inputs.flip(1), is_word.flip(1), self.backward_recurrence).flip(1)
        return self.projection(self.dropout(forward + backward)).relu()


def _relu_states(inputs: torch.Tensor, is_word: torch.Tensor, recurrence: nn.Linear) -> torch.Tensor:
    """Run `h_t = ReLU(x_t + W h_t-1 + b)` over `(N, T, hidden_size)` from h = 0, which stays 0 until the first word."""
    state, states = torch.zeros_like(inputs[:, 0]), []
    for step, mask in zip(inputs.unbind(1), is_word[..., None].unbind(1), strict=True):
        state = (step + recurrence(state)).relu() * mask
        states.append(state)
    return torch.stack(states, dim=1)


class BidirectionalGatedRNN(nn.Module):
    """A GRU or an LSTM in both directions, and a projection."""

    def __init__(self, config: CnnRnnAlignmentConfig):
        super().__init__()
        layer = {"gru": nn.GRU, "lstm": nn.LSTM}[config.rnn_type]
        self.rnn = layer(config.word_embedding_size, config.hidden_size, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(config.dropout)
        self.projection = nn.Linear(2 * config.hidden_size, config.embedding_size)

    def forward(self, words: torch.Tensor, is_word: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """See [`WordAlone`]."""
        packed = pack_padded_sequence(words, lengths.cpu(), batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        return self.projection(self.dropout(states))


CONTEXTS = {
    "none": WordAlone,
    "window": WordWindow,
    "rnn_relu": BidirectionalReluRNN,
    "gru": BidirectionalGatedRNN,
    "lstm": BidirectionalGatedRNN,
}


__all__ = ["CnnRnnTextEncoder"]
