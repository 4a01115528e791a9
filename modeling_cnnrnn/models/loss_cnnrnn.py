"""Cross-entropy over the vocabulary that needs little memory."""

import torch
from torch.autograd.function import once_differentiable


IGNORE_INDEX = -100  # the label of tokens without a loss, as in torch and transformers


def cross_entropy_(logits: torch.Tensor, targets: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
    """
    Compute `F.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)`, overwriting the logits.

    The logits become probabilities, and these their own gradient: the backward pass allocates one more tensor of that size
    instead of three.

    Args:
        logits: `(num_tokens, vocab_size)`; nothing else may need them.
        targets: `(num_tokens,)`.
        label_smoothing: share of the target's probability that is spread over the vocabulary.

    Returns:
        The loss of each token in nats, `(num_tokens,)`.
    """
    return _CrossEntropy.apply(logits, targets[:, None], label_smoothing)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, targets, label_smoothing):
        expected = (1 - label_smoothing) * logits.gather(1, targets)
        if label_smoothing:
            expected += label_smoothing * logits.mean(dim=1, keepdim=True)
        highest = logits.amax(dim=1, keepdim=True)
        total = logits.sub_(highest).exp_().sum(dim=1, keepdim=True)
        if ctx.needs_input_grad[0]:
            gradient = logits.div_(total)
            if label_smoothing:
                gradient -= label_smoothing / logits.shape[1]
            gradient.scatter_add_(1, targets, gradient.new_full(targets.shape, label_smoothing - 1))
            ctx.save_for_backward(gradient)
        return (highest + total.log() - expected).squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx, scale):
        (gradient,) = ctx.saved_tensors
        return gradient * scale[:, None], None, None


__all__ = ["IGNORE_INDEX", "cross_entropy_"]
