"""Images with their captions as a training step receives them: batches, random draws, augmentation."""

import random

import pytest
import torch
from PIL import Image
from support.broken_images import with_broken

from modeling_cnnrnn.data.batching import CaptionDataset, RandomResizedCrop, collate_captions


def test_a_batch_holds_each_image_once_and_its_captions_beside_it(pictures, processor):
    dataset = CaptionDataset(pictures, processor, captions_per_image=3)
    batch = collate_captions([dataset[0], dataset[1]])
    assert batch["pixel_values"].shape == (2, 3, 32, 32)
    assert batch["labels"].shape[:2] == (2, 3)
    ends = (batch["labels"] == processor.tokenizer.eos_token_id).sum(dim=-1)
    assert ends.eq(1).all()


def test_labels_are_what_the_processor_makes_of_a_caption(pictures, processor):
    captions = [*pictures[0]["captions"][:4], "a red circle <eos> above"]  # nobody learns an end in mid-caption
    rows = pictures.select([0]).map(lambda row: {"captions": captions})
    dataset = CaptionDataset(rows, processor, captions_per_image=5)
    expected = processor(text_target=[captions], return_tensors="pt")["labels"][0]
    assert torch.equal(collate_captions([dataset[0]])["labels"][0], expected)


def test_long_captions_are_cut_and_still_end(pictures, processor):
    dataset = CaptionDataset(pictures, processor, max_length=4)
    assert all(len(caption) <= 4 and caption[-1] == 2 for caption in dataset[0]["labels"])


def test_captions_without_a_known_word_are_left_out_and_named(pictures, processor, caplog):
    rows = pictures.map(lambda row: {"captions": ["xyzzy", *row["captions"][:1]]})
    dataset = CaptionDataset(rows, processor)
    assert len(dataset[0]["labels"]) == 1
    dataset.check("train")
    first = rows["image_id"][0]
    assert f"Left out of train: captions without a known word, of ({len(rows)}): `{first}`" in caplog.text


def test_captions_that_are_cut_are_counted_and_their_images_named(pictures, processor, caplog):
    rows = pictures.select(range(3)).map(lambda row: {"captions": ["a red circle"]})
    long = ["a red circle above a blue square", "a blue square below a red circle"]
    rows = rows.map(lambda row, index: {"captions": long if index == 1 else row["captions"]}, with_indices=True)
    CaptionDataset(rows, processor, max_length=8).check("train")
    assert caplog.text == ""  # seven words and the end
    CaptionDataset(rows, processor, max_length=7).check("train", "; pass more")
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == f"Cut in train: captions of more than 7 tokens (2): of `{rows['image_id'][1]}`; pass more."


def test_images_none_of_which_can_be_read_are_refused_before_the_work(pictures, processor):
    rows = with_broken(pictures.select(range(2)), 0)
    CaptionDataset(rows, processor).check("train")
    with pytest.raises(ValueError, match=r"^None of the 1 images of train can be read: .* is not an image"):
        CaptionDataset(rows.select([0]), processor).check("train")


def test_what_is_drawn_depends_on_seed_epoch_and_row_alone(pictures, processor):
    options = {"captions_per_image": 2, "augmentation": RandomResizedCrop((0.5, 0.8)), "seed": 3}
    first, second = (CaptionDataset(pictures, processor, **options) for _ in range(2))
    _ = [first[row] for row in range(5)]  # what was drawn before does not matter
    assert torch.equal(first[7]["pixel_values"], second[7]["pixel_values"])
    assert first[7]["labels"] == second[7]["labels"]
    second.epoch = 1
    assert not torch.equal(first[7]["pixel_values"], second[7]["pixel_values"])


def test_a_broken_image_is_named_and_nothing_is_learned_from_it(pictures, processor):
    dataset = CaptionDataset(with_broken(pictures, 1), processor)
    batch = collate_captions([dataset[0], dataset[1]])
    assert [row for row, _ in batch["broken"]] == [1]
    assert batch["labels"][1].eq(-100).all()
    assert batch["labels"][0].ne(-100).any()


def test_random_crops_keep_the_size_and_the_left_side():
    image = Image.new("RGB", (60, 40))
    image.paste("red", (0, 0, 30, 40))
    crop = RandomResizedCrop((0.9, 1.0))
    for seed in range(20):
        cropped = crop(image, random.Random(seed))
        assert cropped.size == image.size
        assert cropped.getpixel((2, 20))[0] > cropped.getpixel((57, 20))[0]


def test_flips_turn_the_image_over_as_often_as_asked():
    image = Image.new("RGB", (60, 40))
    image.paste("red", (0, 0, 30, 40))
    crop = RandomResizedCrop((1.0, 1.0), (1.0, 1.0), flip_probability=0.5)
    flips = sum(crop(image, random.Random(seed)).getpixel((57, 20))[0] > 128 for seed in range(200))
    assert 70 < flips < 130
