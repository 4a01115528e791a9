"""What `generate` of transformers takes and a captioner cannot do is refused in one sentence."""

import pytest
import torch
from transformers import DynamicCache

from modeling_cnnrnn.models.recurrence_cnnrnn import CnnRnnCache


PROMPTS = torch.tensor([[1, 4, 5], [1, 4, 6], [1, 4, 7]])


def cache_of(model, pixel_values, num_images: int) -> CnnRnnCache:
    words = torch.tensor([[1, 4]]).expand(num_images, -1)
    return model(pixel_values[:num_images], decoder_input_ids=words).past_key_values


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"past_key_values": DynamicCache()}, "`past_key_values` is a DynamicCache: pass the `CnnRnnCache`"),
        ({"past_key_values": "state"}, "`past_key_values` is a str: pass the `CnnRnnCache`"),
        ({"cache_implementation": "static"}, "`cache_implementation` is 'static': the cache of a captioner"),
        ({"cache_implementation": "paged"}, "`cache_implementation` is 'paged': the cache of a captioner"),
        ({"guidance_scale": 1.5}, "`guidance_scale` is 1.5: guidance compares with"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "`penalty_alpha` is 0.6: contrastive search"),
        ({"dola_layers": "high"}, "`dola_layers` is 'high': only the last layer"),
        ({"constraints": ["dog"]}, "pass the words as `force_words_ids`"),
        (
            {"num_beams": 4, "num_beam_groups": 3, "diversity_penalty": 1.0},
            "`num_beam_groups` is 3 and `num_beams` is 4",
        ),
        ({"num_beam_groups": 2, "diversity_penalty": 1.0}, "`num_beam_groups` is 2 and `num_beams` is 1"),
        ({"num_beams": 4, "num_beam_groups": 2}, "`diversity_penalty` is 0.0: pass a positive number"),
        (
            {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0, "do_sample": True},
            "`num_beam_groups` is 2 beside `do_sample`",
        ),
        (
            {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0, "force_words_ids": [[5]]},
            "`num_beam_groups` is 2 beside `force_words_ids`",
        ),
        ({"force_words_ids": [[5]], "do_sample": True}, "`force_words_ids` is for a search"),
        ({"force_words_ids": [[99]], "num_beams": 2}, "`force_words_ids` holds token 99, outside the vocabulary of 20"),
        ({"bad_ending_ids": [5]}, r"`bad_ending_ids` is \[5\]: pass a list of endings"),
        ({"decoder_inputs_embeds": torch.zeros(3, 2, 12)}, "`decoder_inputs_embeds` is a prompt of vectors"),
        ({"inputs_embeds": torch.zeros(3, 2, 12)}, "`inputs_embeds` is a prompt of vectors"),
        ({"decoder_input_ids": torch.zeros(3, 2)}, "`decoder_input_ids` is of torch.float32: pass token ids"),
        ({"input_ids": [[4], [5], [6]]}, "`input_ids` is a list: pass token ids"),
        ({"decoder_input_ids": torch.tensor([[4, 5]])}, r"has shape \(1, 2\) for 3 images: pass one prompt"),
        ({"decoder_input_ids": PROMPTS[:, :0]}, r"has shape \(3, 0\) for 3 images: pass one prompt"),
        (
            {"decoder_input_ids": torch.tensor([[1, 4], [5, 6], [1, 7]])},
            "begins with the start token 1 .* in some rows",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_an_option_that_means_nothing_here_is_refused(tiny_model, pixel_values, options, message):
    with pytest.raises(ValueError, match=message):
        tiny_model.generate(pixel_values, max_new_tokens=3, **options)


@pytest.mark.parametrize("first", [[0, 1, 4], [1, 4, 5]], ids=["all", "some"])
@pytest.mark.parametrize("name", ["decoder_input_ids", "input_ids"])
def test_a_start_token_behind_padding_is_refused(tiny_model, pixel_values, name, first):
    prompts = torch.tensor([first, [0, 1, 5], [0, 1, 6]])
    mask = {"decoder_attention_mask" if name == "decoder_input_ids" else "attention_mask": (prompts != 0).long()}
    with pytest.raises(ValueError, match=f"`{name}` begins with the start token 1 behind padding"):
        tiny_model.generate(pixel_values, **{name: prompts}, **mask, max_new_tokens=3)


def test_a_cache_of_another_batch_is_refused(tiny_model, pixel_values):
    for num_images, options in ((2, {}), (3, {"num_beams": 2})):
        cache = cache_of(tiny_model, pixel_values, num_images)
        with pytest.raises(ValueError, match=f"holds the states of {num_images} sequences for {3 * (num_images - 1)}"):
            tiny_model.generate(pixel_values, past_key_values=cache, decoder_input_ids=PROMPTS, **options)
    with pytest.raises(ValueError, match="holds the states of 2 sequences for 3"):
        tiny_model(pixel_values, past_key_values=cache_of(tiny_model, pixel_values, 2), decoder_input_ids=PROMPTS)
    with pytest.raises(ValueError, match="is a DynamicCache"):
        tiny_model(pixel_values, past_key_values=DynamicCache(), decoder_input_ids=PROMPTS)


def test_a_cache_that_has_read_all_words_is_refused(tiny_model, pixel_values):
    cache = cache_of(tiny_model, pixel_values, 3)
    with pytest.raises(ValueError, match="has read 2 tokens and `decoder_input_ids` holds 1"):
        tiny_model.generate(pixel_values, past_key_values=cache)


@pytest.mark.parametrize("num_beams", [1, 2])
def test_a_sentence_goes_on_from_its_cache(any_model, pixel_values, num_beams):
    cache = cache_of(any_model, pixel_values, 3)
    cache.batch_repeat_interleave(num_beams)
    options = {"decoder_input_ids": PROMPTS, "num_beams": num_beams, "max_new_tokens": 4}
    continued = any_model.generate(pixel_values, past_key_values=cache, **options)
    assert torch.equal(continued, any_model.generate(pixel_values, **options))
