"""Stored features of a frozen CNN: what they hold, when they are computed again, and augmented views."""

import errno
import io
import pickle
import random
import shutil

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from support.broken_images import with_broken

from modeling_cnnrnn import CnnRnnForConditionalGeneration, CnnRnnProcessor
from modeling_cnnrnn.data.batching import CaptionDataset, RandomResizedCrop
from modeling_cnnrnn.evaluation.captions import evaluate_captioner
from modeling_cnnrnn.training.averaging import AveragedWeights
from modeling_cnnrnn.training.features import compute_image_features, features_fingerprint


FLIP = RandomResizedCrop((1.0, 1.0), (1.0, 1.0), flip_probability=1.0)


@pytest.fixture
def captioner(make_model, processor) -> CnnRnnForConditionalGeneration:
    return make_model(attention_type="additive", vocab_size=len(processor.tokenizer))


def seen(captioner, processor, images) -> np.ndarray:
    """What the CNN makes of images."""
    pixel_values = processor(images=images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return captioner.get_encoder().get_image_features(pixel_values)[0].numpy()


def test_the_first_view_is_the_plain_image_and_the_others_go_augmented_through_the_cnn(
    pictures, processor, captioner, tmp_path
):
    views, _ = compute_image_features(captioner, processor, pictures, tmp_path, num_views=2, augmentation=FLIP)
    mirrored = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in pictures["image"]]
    for view, images in zip(views, (pictures["image"][:], mirrored), strict=True):
        np.testing.assert_allclose(view, seen(captioner, processor, images), rtol=2e-3, atol=2e-3)
    # the CNN's strides do not begin at the right edge: turning its features over is not the same
    turned_over = np.asarray(views[0]).reshape(10, 4, 4, -1)[:, :, ::-1].reshape(views[0].shape)
    assert np.abs(turned_over - views[1]).max() > 0.05


def test_more_views_add_to_those_that_are_stored(pictures, processor, captioner, tmp_path):
    crop = RandomResizedCrop()
    options = {"batch_size": 2, "augmentation": crop}
    plain, _ = compute_image_features(captioner, processor, pictures, tmp_path, batch_size=2)
    (plain_store,) = tmp_path.glob("*.safetensors")
    # so that stores made before there were views are taken
    assert plain_store.stem == features_fingerprint(captioner, processor, pictures)
    two, _ = compute_image_features(captioner, processor, pictures, tmp_path, num_views=2, **options)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    assert plain_store in times
    assert len(times) == 2
    captioner.get_encoder().cnn.forward = None  # the third view alone may need the CNN
    with pytest.raises(TypeError):
        compute_image_features(captioner, processor, pictures, tmp_path, num_views=3, **options)
    del captioner.get_encoder().cnn.forward
    three, _ = compute_image_features(captioner, processor, pictures, tmp_path, num_views=3, **options)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    for again, view in zip(three[:2], two, strict=True):
        assert np.array_equal(again, view)
    assert np.array_equal(two[0], plain)
    assert not np.array_equal(three[2], three[1])


def test_means_are_made_of_the_cells_that_are_stored(pictures, processor, make_model, tmp_path):
    models = [make_model(vocab_size=len(processor.tokenizer), attention_type=kind) for kind in ("additive", "none")]
    cells, _ = compute_image_features(models[0], processor, pictures, tmp_path)
    expected, _ = compute_image_features(models[1], processor, pictures, tmp_path / "alone")
    models[1].get_encoder().cnn.forward = None  # the CNN is not run again
    means, broken = compute_image_features(models[1], processor, pictures, tmp_path)
    np.testing.assert_allclose(means, expected, rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(means, np.asarray(cells, np.float32).mean(axis=1, keepdims=True), rtol=1e-3, atol=1e-3)
    assert (means.shape[1], broken) == (1, {})


def test_views_depend_on_their_seed_and_augmentation_alone(pictures, processor, captioner, tmp_path):
    def second_view(folder: str, **options) -> np.ndarray:
        options = {"augmentation": RandomResizedCrop(), **options}
        return compute_image_features(captioner, processor, pictures, tmp_path / folder, num_views=2, **options)[0][1]

    expected = second_view("one")
    assert np.array_equal(second_view("two", batch_size=6), expected)
    assert not np.array_equal(second_view("one", seed=1), expected)
    assert not np.array_equal(second_view("one", augmentation=RandomResizedCrop((0.3, 0.5))), expected)


def test_a_view_that_was_stopped_goes_on_where_it_stood(pictures, processor, captioner, tmp_path):
    options = {"batch_size": 4, "save_steps": 1, "num_views": 2, "augmentation": RandomResizedCrop()}
    expected, _ = compute_image_features(captioner, processor, pictures, tmp_path / "whole", **options)
    extract, calls = captioner.get_encoder().compute_feature_map, []

    def stop_at_the_fifth(pixel_values):
        calls.append(len(pixel_values))
        if len(calls) == 5:
            raise KeyboardInterrupt
        return extract(pixel_values)

    captioner.get_encoder().compute_feature_map = stop_at_the_fifth
    with pytest.raises(KeyboardInterrupt):
        compute_image_features(captioner, processor, pictures, tmp_path / "stopped", **options)
    views, _ = compute_image_features(captioner, processor, pictures, tmp_path / "stopped", **options)
    assert len(calls) == 7  # three of view 0, one of view 1, the one that was lost, and the other two
    for view, other in zip(views, expected, strict=True):
        assert np.array_equal(view, other)


def test_a_captioner_that_was_saved_and_loaded_takes_the_same_store(pictures, processor, captioner, tmp_path):
    captioner.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = CnnRnnForConditionalGeneration.from_pretrained(tmp_path), CnnRnnProcessor.from_pretrained(tmp_path)
    assert features_fingerprint(*again, pictures) == features_fingerprint(captioner, processor, pictures)


def test_a_captioner_of_averaged_weights_takes_the_same_store(pictures, processor, captioner):
    with torch.no_grad():
        for parameter in captioner.get_encoder().cnn.parameters():
            parameter[0] = -0.0
    before = features_fingerprint(captioner, processor, pictures)
    averaged = AveragedWeights(captioner, 0.5)
    averaged.update()
    averaged.adopt()
    assert features_fingerprint(captioner, processor, pictures) == before


def test_features_of_another_precision_have_a_store_of_their_own(pictures, processor, captioner, tmp_path):
    plain, _ = compute_image_features(captioner, processor, pictures, tmp_path)
    with torch.autocast("cpu", torch.bfloat16):
        coarse, _ = compute_image_features(captioner, processor, pictures, tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    assert not np.array_equal(plain, coarse)
    np.testing.assert_allclose(plain, coarse, atol=0.1, rtol=0.1)


def test_several_views_need_an_augmentation(pictures, processor, captioner, tmp_path):
    for options in ({"num_views": 2}, {"num_views": 0, "augmentation": FLIP}):
        with pytest.raises(ValueError, match="`num_views` is"):
            compute_image_features(captioner, processor, pictures, tmp_path, **options)


def test_one_view_of_each_image_is_drawn_per_epoch(pictures, processor):
    views = [np.full((10, 1, 3), view, np.float16) for view in range(3)]
    first, second = (
        CaptionDataset(pictures, processor, captions_per_image=2, image_features=views, seed=7) for _ in range(2)
    )
    plain = CaptionDataset(pictures, processor, captions_per_image=2, image_features=views[0], seed=7)
    drawn = []
    for epoch in range(20):
        first.epoch = second.epoch = plain.epoch = epoch
        for index in random.Random(epoch).sample(range(10), 10):  # whatever the order
            example = first[index]
            drawn.append(int(example["image_features"].unique().item()))
            assert torch.equal(example["image_features"], second[index]["image_features"])
            assert example["labels"] == plain[index]["labels"]  # views change no other draw
            assert not plain[index]["image_features"].any()
    assert all(40 < drawn.count(view) < 100 for view in range(3))


def test_views_of_another_dataset_are_refused(pictures, processor):
    views = [np.zeros((10, 1, 3), np.float16), np.zeros((5, 1, 3), np.float16)]
    with pytest.raises(ValueError, match="holds 5 images and `dataset` 10"):
        CaptionDataset(pictures, processor, image_features=views)


def test_a_worker_process_maps_the_stores_and_receives_no_copy(pictures, processor, captioner, tmp_path):
    views, _ = compute_image_features(captioner, processor, pictures, tmp_path, num_views=2, augmentation=FLIP)
    for view in views:
        message = pickle.dumps(view)
        assert len(message) < 1000 < view.nbytes
        assert np.array_equal(pickle.loads(message), view)
        assert np.array_equal(pickle.loads(pickle.dumps(view[2:4])), view[2:4])


def test_stored_features_give_the_loss_of_the_pixels(pictures, processor, make_model, tmp_path):
    for attention_type in ("none", "additive"):
        model = make_model(attention_type=attention_type, vocab_size=len(processor.tokenizer))
        features, _ = compute_image_features(model, processor, pictures, tmp_path, batch_size=4)
        assert features.shape == (10, 1 if attention_type == "none" else 16, 16)
        losses = [
            evaluate_captioner(model, CaptionDataset(pictures, processor, image_features=stored), generation=()).loss
            for stored in (features, None)
        ]
        assert losses[0] == pytest.approx(losses[1], rel=2e-3)


def test_stored_features_are_a_safetensors_file(pictures, processor, captioner, tmp_path):
    features, _ = compute_image_features(captioner, processor, pictures, tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    with safe_open(path, "numpy") as file:
        assert np.array_equal(file.get_tensor("image_features"), features)


def test_features_that_were_stopped_go_on_where_they_stood(pictures, processor, captioner, tmp_path):
    expected, _ = compute_image_features(captioner, processor, pictures, tmp_path / "whole", batch_size=2)
    seen = []
    extract = captioner.get_encoder().compute_feature_map

    def stop_at_the_third(pixel_values):
        seen.append(len(pixel_values))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return extract(pixel_values)

    captioner.get_encoder().compute_feature_map = stop_at_the_third
    for _ in range(2):
        try:
            features, _ = compute_image_features(
                captioner, processor, pictures, tmp_path / "stopped", batch_size=2, save_steps=1
            )
        except KeyboardInterrupt:
            assert not list((tmp_path / "stopped").glob("*.safetensors"))
    assert len(seen) == 6  # two batches, the one that was lost, and the other three
    assert np.array_equal(features, expected)


def test_features_of_another_cnn_or_preprocessing_are_not_taken(pictures, processor, captioner, tmp_path):
    compute_image_features(captioner, processor, pictures, tmp_path)
    with torch.no_grad():
        next(captioner.get_encoder().cnn.parameters()).view(-1)[0] += 1
    compute_image_features(captioner, processor, pictures, tmp_path)
    processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    compute_image_features(captioner, processor, pictures, tmp_path)
    compute_image_features(captioner, processor, pictures.select(range(9)), tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 4


def test_broken_images_are_named_with_the_features(pictures, processor, captioner, tmp_path):
    for _ in ("computed", "from the store"):
        _, broken = compute_image_features(captioner, processor, with_broken(pictures, 4), tmp_path)
        assert list(broken) == [4]


def test_a_full_disk_while_features_are_stored_can_be_gone_on_from(
    pictures, processor, captioner, tmp_path, monkeypatch
):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("modeling_cnnrnn.training.features.os.replace", full)
    with pytest.raises(OSError, match="No space"):
        compute_image_features(captioner, processor, pictures, tmp_path)
    monkeypatch.undo()
    features, _ = compute_image_features(captioner, processor, pictures, tmp_path)
    shutil.rmtree(tmp_path)
    expected, _ = compute_image_features(captioner, processor, pictures, tmp_path)
    assert np.array_equal(features, expected)


def test_drafted_features_are_of_the_drafted_images_and_have_a_store_of_their_own(processor, captioner, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    photograph = io.BytesIO()
    Image.fromarray(noise).resize((640, 640)).save(photograph, "JPEG")
    columns = {"image": [{"bytes": photograph.getvalue(), "path": None}], "image_id": ["0"], "captions": [["a dog"]]}
    rows = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    plain, _ = compute_image_features(captioner, processor, rows, tmp_path)
    drafted, _ = compute_image_features(captioner, processor, rows, tmp_path, draft=True)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    pixel_values = CaptionDataset(rows, processor, draft=True)[0]["pixel_values"][None]
    with torch.no_grad():
        expected = captioner.get_encoder().get_image_features(pixel_values)[0].numpy()
    np.testing.assert_allclose(drafted, expected, rtol=2e-3, atol=2e-3)
    assert np.abs(drafted - plain).max() > 1e-2
