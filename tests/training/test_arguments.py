"""The options of a training: each has a sentence of help, and those that have no effect together are refused."""

import json
import re
import subprocess
import sys
from dataclasses import fields

import pytest
from support.paths import EXAMPLES

from modeling_cnnrnn.models.architectures_cnnrnn import ARCHITECTURES
from modeling_cnnrnn.training.arguments import (
    CaptionDataArguments,
    CaptionModelArguments,
    StageArguments,
    TrainingArguments,
    check_options,
)


GROUPS = [CaptionDataArguments, CaptionModelArguments, TrainingArguments, StageArguments]
OPTIONS = {option.name: (group, option) for group in GROUPS for option in fields(group)}


def check(**options) -> None:
    """`check_options` with these options, each in its group, and the defaults of all others."""
    check_options(*(group(**{k: v for k, v in options.items() if OPTIONS[k][0] is group}) for group in GROUPS))


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_has_a_sentence_of_help(name):
    text = OPTIONS[name][1].metadata["help"]
    assert text[0].isupper() or text[0] == "'"
    assert text.endswith(".")
    assert len(text.split()) > 2
    assert text.split()[0] not in ("Of", "As", "In")  # a sentence of its own, not the end of another


def test_no_option_is_in_two_groups():
    assert len(OPTIONS) == sum(len(fields(group)) for group in GROUPS)


def test_there_is_one_default_length(tiny_model):
    lengths = {CaptionDataArguments().max_caption_length, CaptionModelArguments().max_length}
    assert lengths == {tiny_model.generation_config.max_length}


def test_an_architecture_takes_the_place_of_the_defaults_and_of_nothing_else():
    options = CaptionModelArguments(architecture="up_down", hidden_size=64, feature_dropout=0.1).layer_options()
    assert ARCHITECTURES["up_down"].items() <= options.items()
    assert (options["hidden_size"], options["feature_dropout"]) == (64, 0.1)
    assert (
        CaptionModelArguments(architecture="show_attend_tell", deep_output="tanh").layer_options()["deep_output"]
        == "tanh"
    )
    with pytest.raises(ValueError, match="pass one of dvsa"):
        CaptionModelArguments(architecture="other").layer_options()


FROZEN = {"encoder_name_or_path": "resnet"}
STORED = FROZEN | {"cache_image_features": True}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"preload_images": True, "random_crop": True}, "`preload_images` has no effect with `random_crop`"),
        ({"preload_images": True, "flip_probability": 0.5}, "`preload_images` has no effect"),
        (STORED | {"preload_images": True}, "`preload_images` has no effect with `cache_image_features`"),
        (STORED | {"random_crop": True}, "several views of each image"),
        ({"cache_image_features": True}, "needs a frozen CNN"),
        ({"num_feature_views": 2}, "`num_feature_views` is 2, which has no effect without `cache_image_features`"),
        ({"features_cache_dir": "store"}, "`features_cache_dir` is 'store', which has no effect without"),
        (FROZEN | {"encoder_config": "{}"}, "`encoder_config` has no effect with `encoder_name_or_path`"),
        (
            {"model_name_or_path": "captioner", "rnn_type": "gru"},
            "`rnn_type` is 'gru', which has no effect with `model_",
        ),
        (
            {"model_name_or_path": "captioner", "architecture": "nic"},
            "`architecture` is 'nic', which has no effect with",
        ),
        (
            {"model_name_or_path": "captioner", "word_vectors": "a.vec"},
            "`word_vectors` is 'a.vec', which has no effect",
        ),
        ({"region_features": "features", "random_crop": True}, "`random_crop` is True, which has no effect with"),
        (FROZEN | {"region_features": "features"}, "`encoder_name_or_path` is 'resnet', which has no effect with"),
        ({"model_name_or_path": "captioner", "encoder_config": "{}"}, "`encoder_config` is '{}', which has no effect"),
        ({"model_name_or_path": "captioner", "image_size": 32}, "`image_size` is 32, which has no effect with"),
        ({"model_name_or_path": "captioner", "min_frequency": 1}, "keeps its architecture, vocabulary and image size"),
        (
            FROZEN | {"encoder_learning_rate": 1e-4},
            "`encoder_learning_rate` is 0.0001, which has no effect while the CNN",
        ),
        (FROZEN | {"gradient_checkpointing": True}, "`gradient_checkpointing` is True, which has no effect while"),
        (
            FROZEN | {"unfreeze_encoder_from_layer": -1},
            "`unfreeze_encoder_from_layer` is -1, which has no effect while",
        ),
        ({"unfreeze_encoder_from_layer": -1}, "no effect without a pretrained CNN"),
        ({"freeze_encoder": False, "unfreeze_encoder_after_steps": 9}, "there is nothing to unfreeze"),
        ({"scheduled_sampling_start": 2.0}, "no effect without `scheduled_sampling_max`"),
        ({"self_critical_num_samples": 3}, "no effect without self-critical training"),
        ({"hub_model_id": "me/captioner"}, "no effect without `push_to_hub`"),
    ],
)
def test_options_without_an_effect_are_refused(options, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        check(**options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"preload_images": True},
        STORED | {"random_crop": True, "num_feature_views": 2},
        STORED | {"random_crop": True, "unfreeze_encoder_after_epochs": 1, "encoder_learning_rate": 1e-4},
        STORED | {"draft_decoding": True},
        {"model_name_or_path": "captioner", "freeze_encoder": False, "gradient_checkpointing": True, "max_length": 9},
        {"self_critical_after_epochs": 1, "self_critical_num_samples": 3},
        {"push_to_hub": True, "hub_model_id": "me/captioner"},
    ],
)
def test_options_with_an_effect_are_taken(options):
    check(**options)


OTHERS = ("*_alignment.json", "*_classifier.json", "cifar10.json")
CAPTIONERS = sorted(
    path for path in (EXAMPLES / "recipes").glob("*.json") if not any(path.match(pattern) for pattern in OTHERS)
)


@pytest.mark.parametrize("recipe", CAPTIONERS, ids=lambda path: path.stem)
def test_every_option_of_a_recipe_has_an_effect(recipe):
    starts = {"flickr8k_attention": "encoder", "flickr8k_lstm": "encoder"}
    starts |= {"flickr8k_finetuned": "model", "flickr8k_self_critical": "model"}
    start = {f"{starts[recipe.stem]}_name_or_path": "path"} if recipe.stem in starts else {}
    check(**json.loads(recipe.read_text()), **start)


def test_a_command_line_does_not_wait_for_torch():
    code = "import sys, modeling_cnnrnn.training.arguments; assert not {'torch', 'transformers'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
