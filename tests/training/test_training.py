"""The parts of a training: batches, augmentation, stored features, whole folders, scores."""

import errno
import random
import shutil

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from modeling_cnnrnn import CnnRnnForConditionalGeneration
from modeling_cnnrnn.data.batching import CaptionDataset, RandomResizedCrop, collate_captions
from modeling_cnnrnn.evaluation.captions import evaluate_captioner
from modeling_cnnrnn.files import copy_files, whole_folder
from modeling_cnnrnn.training.averaging import AveragedWeights
from modeling_cnnrnn.training.checkpoints import (
    checkpoints,
    find_checkpoint,
    remove_later_checkpoints,
    remove_old_checkpoints,
)
from modeling_cnnrnn.training.curves import save_training_curves
from modeling_cnnrnn.training.features import compute_image_features
from modeling_cnnrnn.training.optimization import (
    encoder_layers,
    in_groups,
    parameter_groups,
    two_stage_scheduler,
    unfreeze_encoder_layers,
)
from modeling_cnnrnn.training.stages import Stages, scheduled_sampling_probability, switch_step


@pytest.fixture
def captioner(make_model, processor) -> CnnRnnForConditionalGeneration:
    return make_model(vocab_size=len(processor.tokenizer))


def with_broken(pictures: datasets.Dataset, row: int) -> datasets.Dataset:
    """The pictures, one of which ends in mid-file."""
    images = [example["image"] for example in pictures.cast_column("image", datasets.Image(decode=False))]
    images[row] = {"bytes": images[row]["bytes"][:60], "path": None}
    return pictures.remove_columns("image").add_column("image", images).cast_column("image", datasets.Image())


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


def test_captions_without_a_known_word_are_left_out_and_counted(pictures, processor):
    pictures = pictures.map(lambda row: {"captions": ["xyzzy", *row["captions"][:1]]})
    dataset = CaptionDataset(pictures, processor)
    assert len(dataset[0]["labels"]) == 1
    assert dataset.num_captions_left_out == len(pictures)


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


def test_broken_images_get_no_caption(pictures, processor, captioner):
    evaluation = evaluate_captioner(captioner, CaptionDataset(with_broken(pictures, 1), processor), batch_size=4)
    assert [caption.row for caption in evaluation.captions[0]] == [0, *range(2, 10)]
    assert list(evaluation.broken) == [1]


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
    extract = captioner.get_encoder().get_image_features

    def stop_at_the_third(pixel_values):
        seen.append(len(pixel_values))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return extract(pixel_values)

    captioner.get_encoder().get_image_features = stop_at_the_third
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


def test_a_folder_that_cannot_be_written_leaves_the_one_before(tmp_path):
    target = tmp_path / "checkpoint-1"
    with whole_folder(target) as folder:
        (folder / "weights").write_text("old")
    full_disk = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="No space"), whole_folder(target) as folder:  # noqa: PT012
        (folder / "weights").write_text("new")
        raise full_disk
    assert (target / "weights").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


def test_latest_is_the_newest_whole_checkpoint(tmp_path):
    assert find_checkpoint(tmp_path, "latest") is None
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-11.partial"):
        (tmp_path / name).mkdir()
    assert find_checkpoint(tmp_path, "latest") == tmp_path / "checkpoint-10"


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no trainer_state"):
        find_checkpoint(tmp_path, str(tmp_path / "nowhere"))


def test_only_the_newest_checkpoints_stay(tmp_path):
    for step in (2, 10, 4):
        (tmp_path / f"checkpoint-{step}").mkdir()
    remove_old_checkpoints(tmp_path, 2)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-4", "checkpoint-10"]
    remove_old_checkpoints(tmp_path, None)
    assert len(checkpoints(tmp_path)) == 2


def test_the_cnn_learns_at_its_own_rate_and_vectors_do_not_decay(captioner):
    groups = parameter_groups(captioner, 1e-3, 1e-5, weight_decay=0.1)
    by_parameter = {id(p): group for group in groups for p in group["params"]}
    for name, parameter in captioner.named_parameters():
        group = by_parameter[id(parameter)]
        assert group["lr"] == (1e-5 if ".cnn." in name else 1e-3)
        assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0)


def test_frozen_weights_are_not_in_the_optimiser(captioner):
    captioner.freeze_encoder()
    trained = {id(p) for group in parameter_groups(captioner, 1e-3) for p in group["params"]}
    assert not trained & {id(p) for p in captioner.get_encoder().cnn.parameters()}


def test_the_layers_of_a_cnn_hold_each_weight_once_from_the_stem_on(captioner):
    cnn = captioner.get_encoder().cnn
    names = {id(parameter): name for name, parameter in cnn.named_parameters()}
    layers = [{names[id(parameter)] for parameter in layer} for layer in encoder_layers(captioner)]
    assert [len({name.split(".")[0] for name in layer}) for layer in layers] == [1, 1, 1]
    assert all(name.startswith("embedder.") for name in layers[0])
    assert all(name.startswith("encoder.stages.1.") for name in layers[2])
    assert sum(map(len, layers)) == len(names)


def test_a_cnn_is_finetuned_from_a_layer_on_without_its_norms(captioner):
    captioner.freeze_encoder()
    unfreeze_encoder_layers(captioner, -1)
    learning = {name for name, p in captioner.get_encoder().cnn.named_parameters() if p.requires_grad}
    assert learning
    assert all(name.startswith("encoder.stages.1.") and "normalization" not in name for name in learning)
    captioner.train()
    assert not any(m.training for m in captioner.modules() if isinstance(m, torch.nn.BatchNorm2d))
    with pytest.raises(ValueError, match="from -3 to 2"):
        unfreeze_encoder_layers(captioner, 3)


def test_the_rate_of_the_cnn_falls_from_layer_to_layer(captioner):
    groups = parameter_groups(captioner, 1e-3, 1e-4, encoder_layer_decay=0.5)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    for depth, layer in enumerate(encoder_layers(captioner)):
        assert {rates[id(p)] for p in layer} == {1e-4 * 0.5 ** (2 - depth)}
    assert rates[id(captioner.lm_head.weight)] == 1e-3
    assert {group["name"]: group["lr"] for group in groups} == {"encoder": 1e-4, "decoder": 1e-3}


def test_each_stage_has_the_schedule_with_its_warmup():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    scheduler = two_stage_scheduler("linear", optimizer, 0.25, 12, second_stage_step=8, second_stage_factor=0.1)
    rates = []
    for _ in range(12):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    first = [0, 1, 2, 2 * 5 / 6, 2 * 4 / 6, 1, 2 / 3, 1 / 3]
    assert rates == pytest.approx([*first, 0, 0.2, 0.2 * 2 / 3, 0.2 / 3])


def test_averaged_weights_are_in_the_model_only_within_their_context(captioner):
    weight, norm = captioner.lm_head.weight, captioner.get_encoder().cnn.embedder.embedder.normalization
    averaged = AveragedWeights(captioner, 0.5)
    start = weight.detach().clone()
    with torch.no_grad():
        weight += 1
        norm.running_mean += 1
    learned = weight.detach().clone()
    averaged.update()  # the first step keeps min(decay, 2 / 11) of the average
    with averaged.applied():
        assert torch.allclose(weight, start + 9 / 11)
        assert torch.allclose(norm.running_mean, torch.tensor(9 / 11))
    assert torch.equal(weight, learned)
    again = AveragedWeights(captioner, 0.5)
    again.load_state_dict(averaged.state_dict())
    assert all(map(torch.equal, again.averages, averaged.averages))
    assert again.num_updates == 1


def test_trained_weights_stay_in_their_average(captioner):
    weight = captioner.lm_head.weight
    averaged = AveragedWeights(captioner, 0.9, warmup=False)
    start = weight.detach().clone()
    with torch.no_grad():
        weight += 1
    averaged.update()
    with averaged.applied():
        assert torch.allclose(weight, start + 0.1)


def test_stages_follow_each_other():
    stages = Stages(encoder_step=2, self_critical_step=4)
    assert [str(stages.at(step)) for step in (1, 2, 4)] == [
        "cross-entropy, frozen CNN",
        "cross-entropy",
        "self-critical",
    ]
    assert str(Stages(None, 0).at(0)) == "self-critical, frozen CNN"
    assert switch_step("self_critical", 1.5, None, 10) == 15
    assert switch_step("self_critical", None, 0, 10) == 0
    with pytest.raises(ValueError, match="self_critical_after_epochs"):
        switch_step("self_critical", -1, None, 10)


def test_scheduled_sampling_grows_from_its_start_to_its_maximum():
    values = [scheduled_sampling_probability(epoch, 2, 0.05, 0.25) for epoch in (0, 2, 3.5, 7, 50)]
    assert values == pytest.approx([0, 0, 0.075, 0.25, 0.25])


def test_a_folder_that_was_being_replaced_when_the_process_was_killed_comes_back(tmp_path):
    target = tmp_path / "best"
    (tmp_path / "best.previous").mkdir()
    (tmp_path / "best.previous" / "weights").write_text("old")
    with pytest.raises(OSError, match="full"), whole_folder(target):
        raise OSError("full")
    assert (target / "weights").read_text() == "old"


def test_files_are_copied_beside_those_that_are_there(tmp_path):
    for folder, name in (("from", "a/b"), ("from", "c"), ("to", "c"), ("to", "d")):
        path = tmp_path / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(folder)
    copy_files(tmp_path / "from", tmp_path / "to")
    files = {str(p.relative_to(tmp_path / "to")): p.read_text() for p in (tmp_path / "to").rglob("*") if p.is_file()}
    assert files == {"a/b": "from", "c": "from", "d": "to"}


def test_checkpoints_after_a_step_are_removed(tmp_path):
    for name in ("checkpoint-2", "checkpoint-10", "checkpoint-4", "checkpoint-3.partial"):
        (tmp_path / name).mkdir()
    remove_later_checkpoints(tmp_path, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-4"]


def test_a_checkpoint_that_is_half_removed_is_not_the_latest(tmp_path, monkeypatch):
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-5").mkdir()
    monkeypatch.setattr("shutil.rmtree", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        remove_later_checkpoints(tmp_path, 2)
    assert find_checkpoint(tmp_path, "latest") == tmp_path / "checkpoint-2"


def test_curves_of_self_critical_training_show_its_reward(tmp_path):
    steps = [{"step": 1, "loss": 3.0, "learning_rate": 0.1}]
    panels = {"loss": ["loss"], "CIDEr": ["CIDEr"], "reward": ["reward", "baseline"]}
    save_training_curves(tmp_path / "plain.png", steps, [{"step": 1, "CIDEr": 0.3}], panels)
    steps.append({"step": 2, "loss": -0.1, "learning_rate": 0.1, "reward": 0.5, "baseline": 0.4})
    save_training_curves(tmp_path / "rewards.png", steps, [{"step": 2, "CIDEr": 0.4, "loss": 3.1}], panels)
    plain, rewards = (Image.open(tmp_path / name) for name in ("plain.png", "rewards.png"))
    assert rewards.width > 1.2 * plain.width


def test_groups_hold_all_items():
    assert list(in_groups(range(5), 2)) == [[0, 1], [2, 3], [4]]


def test_probabilities_of_a_sentence_are_those_of_a_forward_pass(pictures, processor, captioner):
    dataset = CaptionDataset(pictures, processor)
    options = {"num_beams": 3, "max_length": 8}
    caption = evaluate_captioner(captioner, dataset, generation=[options]).captions[0][0]
    ids = processor.tokenizer.convert_tokens_to_ids(caption.words)
    inputs = torch.tensor([[1, *ids[:-1]]])
    logits = captioner(dataset[0]["pixel_values"][None], decoder_input_ids=inputs).logits
    expected = logits.log_softmax(-1)[0, range(len(ids)), ids].sum().item()
    assert caption.log_probability == pytest.approx(expected, abs=1e-4)


def test_attention_maps_have_one_place_for_each_region(pictures, processor, make_model):
    model = make_model(attention_type="additive", vocab_size=len(processor.tokenizer))
    evaluation = evaluate_captioner(model, CaptionDataset(pictures, processor), with_attention=True)
    for caption in evaluation.captions[0]:
        assert caption.attention.shape == (len(caption.words), 4, 4)
        assert np.allclose(caption.attention.sum((1, 2)), 1, atol=1e-5)


def test_the_loss_of_a_dataset_does_not_depend_on_its_batches(pictures, processor, captioner):
    dataset = CaptionDataset(pictures, processor)
    one, four = (evaluate_captioner(captioner, dataset, batch_size=size).loss for size in (1, 4))
    assert one == pytest.approx(four, rel=1e-5)


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
