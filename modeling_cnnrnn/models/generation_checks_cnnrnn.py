"""Refuse what `generate` of transformers takes and a recurrent captioner cannot do, each in one sentence."""

from typing import Any

import torch
from transformers import GenerationConfig

from .error_messages_cnnrnn import shown


def check_generation_options(config: GenerationConfig):
    """
    Check options of a call of `generate` that mean nothing for a recurrent captioner, or do not fit each other.

    Raises:
        ValueError: a cache of keys and values, guidance, or a search that compares layers or hidden states is asked for; the
            groups of diverse beam search do not fit the beams; sampling is asked for beside a search.
    """
    check_cache_implementation(config.cache_implementation)
    if config.guidance_scale not in (None, 1, 1.0):
        raise ValueError(
            f"`guidance_scale` is {shown(config.guidance_scale)}: guidance compares with the same model without its "
            "condition, and a captioner cannot read without an image; leave it out."
        )
    if config.penalty_alpha:
        raise ValueError(
            f"`penalty_alpha` is {shown(config.penalty_alpha)}: contrastive search takes similar hidden states for "
            "repeated words, and a recurrent state resembles the one before whatever the word; use `no_repeat_ngram_size`."
        )
    if config.dola_layers is not None:
        raise ValueError(
            f"`dola_layers` is {shown(config.dola_layers)}: only the last layer of a recurrent decoder is trained to "
            "predict words; leave it out."
        )
    if config.constraints is not None:
        raise ValueError("`constraints` is not what transformers 5 has: pass the words as `force_words_ids`.")
    if (config.num_beam_groups or 1) > 1:
        _check_groups(config)
    if config.force_words_ids is not None and config.do_sample:
        raise ValueError("`force_words_ids` is for a search, and `do_sample` is True: pass `do_sample=False`.")


def _check_groups(config: GenerationConfig):
    """
    Raises:
        ValueError: the options of diverse beam search do not fit each other.
    """
    num_groups = config.num_beam_groups
    if config.num_beams % num_groups:
        raise ValueError(
            f"`num_beam_groups` is {num_groups} and `num_beams` is {config.num_beams}: pass a multiple of the groups as beams."
        )
    if not config.diversity_penalty or config.diversity_penalty < 0:
        raise ValueError(
            f"`diversity_penalty` is {shown(config.diversity_penalty)}: pass a positive number, or all "
            f"{num_groups} groups of beams write the same."
        )
    if config.do_sample or config.force_words_ids is not None:
        other = "do_sample" if config.do_sample else "force_words_ids"
        raise ValueError(f"`num_beam_groups` is {num_groups} beside `{other}`: pass one of the two.")


def check_cache_implementation(name: Any):
    """
    Raises:
        ValueError: a cache is asked for by name.
    """
    if name is not None:
        raise ValueError(
            f"`cache_implementation` is {shown(name)}: the cache of a captioner is a `CnnRnnCache`, its recurrent state; "
            "leave it out."
        )


def check_prompt(name: str, prompt: Any, mask: torch.Tensor | None, start_token_id: torch.Tensor, num_images: int):
    """
    Check a prompt of `generate`.

    Args:
        name: what the caller calls it, for the error message.
        prompt: token ids, `(num_images, T)`.
        mask: 0 where a token is padding, `(num_images, T)`.
        start_token_id: the token that `generate` puts before a prompt that does not begin with it.

    Raises:
        ValueError: the prompt holds vectors, is not of that shape, or has a start token behind padding or in some of its
            rows only, where none would be put before the others.
    """
    if not isinstance(prompt, torch.Tensor) or prompt.is_floating_point():
        kind = f"of {prompt.dtype}" if isinstance(prompt, torch.Tensor) else f"a {type(prompt).__name__}"
        raise ValueError(f"`{name}` is {kind}: pass token ids, whose words the sentence begins with.")
    if prompt.ndim != 2 or len(prompt) != num_images or prompt.shape[1] == 0:
        raise ValueError(
            f"`{name}` has shape {tuple(prompt.shape)} for {num_images} images: pass one prompt of one or more tokens for "
            "each image, or none."
        )
    first = (
        mask.long().argmax(dim=1) if mask is not None and mask.shape == prompt.shape else prompt.new_zeros(len(prompt))
    )
    begins = prompt.gather(1, first.to(prompt.device)[:, None]).squeeze(1) == start_token_id.to(prompt.device).flatten()
    if begins.any() and not (begins.all() and not first.any()):
        raise ValueError(
            f"`{name}` begins with the start token {int(start_token_id.flatten()[0])} behind padding or in some rows only: "
            "leave the start token out of prompts, `generate` puts it before them."
        )


__all__ = ["check_cache_implementation", "check_generation_options", "check_prompt"]
