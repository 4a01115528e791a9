"""Regions: where cells look, what boxes hold, and which part of a picture is seen."""

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny_models import TINY_CNNS
from torch.nn.functional import grid_sample
from torch.testing import assert_close
from transformers import (
    AutoModel,
    AutoModelForObjectDetection,
    BitImageProcessorPil,
    ConvNextConfig,
    DeformableDetrConfig,
    DeformableDetrImageProcessorPil,
    RegNetConfig,
    ResNetConfig,
    YolosConfig,
    YolosImageProcessorPil,
)

from modeling_cnnrnn import CnnRnnAlignmentConfig, CnnRnnAlignmentProcessor, CnnRnnForImageTextRetrieval, detect_boxes
from modeling_cnnrnn.evaluation.region_captions import caption_regions
from modeling_cnnrnn.models.image_view_cnnrnn import View, find_view
from modeling_cnnrnn.models.receptive_field_cnnrnn import measure_cell_centers, place_maps
from modeling_cnnrnn.models.regions_cnnrnn import pad_boxes, pool_boxes


# --- Where cells look ------------------------------------------------------------------------------------------------


def centers_by_arithmetic(layers: list[tuple[int, int, int]], cells: int) -> list[float]:
    """Middles of cells in pixels, of convolutions (kernel, stride, padding before) one after another."""
    jump, first = 1, 0.5
    for kernel, stride, padding in layers:
        first += ((kernel - 1) / 2 - padding) * jump
        jump *= stride
    return [first + jump * cell for cell in range(cells)]


WIDE = {"embedding_size": 32, "hidden_sizes": [32, 32], "depths": [1, 1]}
STEM = (7, 2, 3), (3, 2, 1)  # of a ResNet: a convolution and a maximum


@pytest.mark.parametrize("size", [64, 57, 80])
@pytest.mark.parametrize(
    ("config", "layers"),
    [
        (ResNetConfig(layer_type="basic", **WIDE), [*STEM, (3, 1, 1), (3, 1, 1), (3, 2, 1), (3, 1, 1)]),
        (RegNetConfig(groups_width=8, **WIDE), [(3, 2, 1), (3, 2, 1), (3, 2, 1)]),
        (
            ConvNextConfig(num_stages=2, hidden_sizes=[32, 32], depths=[1, 1]),
            [(4, 4, 0), (7, 1, 3), (2, 2, 0), (7, 1, 3)],
        ),
    ],
    ids=["resnet", "regnet", "convnext"],
)
def test_cells_look_where_arithmetic_says(config, layers, size):
    cnn = AutoModel.from_config(config).eval()
    picture = torch.zeros(1, 3, size, size + 16)
    rows, columns = measure_cell_centers(lambda pixels: cnn(pixels).last_hidden_state, picture)
    assert (len(rows), len(columns)) == cnn(picture).last_hidden_state.shape[2:]
    stride = float(rows[1] - rows[0])
    for measured in (rows, columns):
        expected = torch.tensor(centers_by_arithmetic(layers, len(measured)))
        assert float((measured - expected).abs().max()) < 0.1 * stride  # the naive reading is off by half of it


def test_a_map_is_placed_where_its_cells_look():
    """A map that says where each cell looks says, once placed, where each part of the picture is."""
    rows, columns = torch.arange(4) / 4 + 0.02, torch.arange(8) / 8 + 0.05
    for maps, axis in ((rows[:, None].expand(4, 8), 0), (columns.expand(4, 8), 1)):
        placed = place_maps(maps[None], (rows, columns), (12, 24))[0]
        parts = (torch.arange(placed.shape[axis]) + 0.5) / placed.shape[axis]
        expected = parts.clamp(maps.min(), maps.max())
        assert_close(placed.mean(dim=1 - axis), expected)
        assert_close(placed, expected.view(-1, 1).expand(12, 24) if axis == 0 else expected.expand(12, 24))
    assert torch.equal(place_maps(torch.ones(2, 1, 1), (rows[:1], columns[:1]), (2, 2)), torch.ones(2, 2, 2))


def test_cells_are_measured_once_and_the_cnn_stays_as_it_was(make_region_model, pixel_values):
    model = make_region_model().train()
    model.freeze_encoder()
    encoder, runs = model.get_encoder(), []
    encoder.cnn.register_forward_hook(lambda *_: runs.append(1))
    state = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    with torch.inference_mode():
        first = encoder.cell_centers(32, 32)
        assert encoder.cell_centers(32, 32) is first
    assert len(runs) == 1
    assert all(torch.equal(tensor, state[name]) for name, tensor in encoder.state_dict().items())
    assert encoder.training
    assert not encoder.cnn.training
    assert all(parameter.grad is None for parameter in encoder.parameters())


# --- Boxes -----------------------------------------------------------------------------------------------------------


def test_a_pooled_box_is_the_mean_of_many_samples():
    features = torch.randn(2, 3, 5, 7, dtype=torch.float64)
    boxes = torch.rand(2, 6, 2, 2, dtype=torch.float64).sort(dim=2).values.flatten(2)
    centers = (torch.arange(5) / 5 + 0.02, torch.arange(7) / 7 + 0.05)  # up and left of the middles of the cells
    pooled = pool_boxes(features, boxes, tuple(axis.double() for axis in centers))
    samples = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    for b in range(2):
        for n in range(6):
            x_min, y_min, x_max, y_max = boxes[b, n]
            x = ((x_min + samples * (x_max - x_min)) - 0.05) * 7  # in cells
            y = ((y_min + samples * (y_max - y_min)) - 0.02) * 5
            grid_y, grid_x = torch.meshgrid(2 * y / 4 - 1, 2 * x / 6 - 1, indexing="ij")
            grid = torch.stack([grid_x, grid_y], dim=-1)[None]
            sampled = grid_sample(features[b : b + 1], grid, padding_mode="border", align_corners=True)
            assert_close(pooled[b, n], sampled.mean(dim=(0, 2, 3)), atol=1e-4, rtol=1e-4)


def test_the_box_of_a_ramp_has_the_value_at_its_middle():
    ramp = torch.arange(9.0).expand(1, 1, 9, 9)
    centers = (torch.arange(9) + 0.5) / 9
    boxes = torch.tensor([[[0.2, 0.1, 0.6, 0.9], [0.5, 0.5, 0.501, 0.501]]])
    pooled = pool_boxes(ramp, boxes, (centers, centers))[0, :, 0]
    assert_close(pooled, torch.tensor([0.4 * 9 - 0.5, 0.5005 * 9 - 0.5]), atol=1e-3, rtol=1e-3)


def test_boxes_of_detectors_are_padded_and_rounded_ones_kept():
    padded, mask = pad_boxes(
        [torch.tensor([[-0.00001, 0.0, 1.00001, 0.5]]), torch.tensor([[0, 0, 1, 1], [0, 0, 0.5, 0.5]])]
    )
    assert mask.tolist() == [[True, False], [True, True]]
    assert padded[0, 0].tolist() == [0.0, 0.0, 1.0, 0.5]


@pytest.fixture
def make_region_model(tiny_encoder_config):
    def make(**options) -> CnnRnnForImageTextRetrieval:
        torch.manual_seed(0)
        sizes = {"vocab_size": 20, "hidden_size": 14, "embedding_size": 12, "word_embedding_size": 10}
        return CnnRnnForImageTextRetrieval(
            CnnRnnAlignmentConfig(**({"encoder": tiny_encoder_config.to_dict()} | sizes | options))
        ).eval()

    return make


@torch.no_grad()
@pytest.mark.parametrize("cnn", list(TINY_CNNS))
def test_regions_of_any_cnn_have_boxes_in_the_picture(make_region_model, cnn):
    model = make_region_model(encoder=TINY_CNNS[cnn].to_dict())
    output = model.get_image_features(torch.randn(2, 3, 64, 96), output_boxes=True)
    assert output.boxes.shape == (*output.last_hidden_state.shape[:2], 4)
    assert output.boxes.min() >= 0
    assert output.boxes.max() <= 1
    cells = output.boxes[0, :-1]
    assert (cells[:, 2:] > cells[:, :2]).all()
    assert output.boxes[0, -1].tolist() == [0, 0, 1, 1]


@torch.no_grad()
def test_coarser_cells_cover_the_boxes_of_finer_ones(make_region_model):
    pixel_values = torch.randn(1, 3, 64, 64)
    fine = make_region_model(add_whole_image=False).get_image_features(pixel_values, output_boxes=True)
    coarse_model = make_region_model(add_whole_image=False, region_grid_size=4, normalize_embeddings=False)
    coarse = coarse_model.get_image_features(pixel_values, output_boxes=True)
    boxes = fine.boxes[0].view(8, 8, 4)
    expected = torch.cat([boxes[::2, ::2, :2], boxes[1::2, 1::2, 2:]], dim=-1).flatten(0, 1)
    assert_close(coarse.boxes[0], expected)
    # stored cells that were averaged before have the same boxes, and the same features
    features, _ = coarse_model.get_encoder().get_image_features(pixel_values)
    averaged = (
        torch.nn.functional.avg_pool2d(features.transpose(1, 2).unflatten(2, (8, 8)), 2).flatten(2).transpose(1, 2)
    )
    stored = coarse_model.get_image_features(image_features=averaged, image_size=(64, 64), output_boxes=True)
    assert_close(stored.boxes, coarse.boxes)
    assert_close(stored.last_hidden_state, coarse.last_hidden_state)


@torch.no_grad()
def test_a_box_around_a_cell_has_about_its_features(make_region_model):
    """Of a feature map that changes from cell to cell, the box around one of them has what it holds."""
    model = make_region_model(normalize_embeddings=False)
    pixel_values = torch.randn(1, 3, 64, 64)
    cells = model.get_image_features(pixel_values, output_boxes=True)
    point = cells.centers[0, 27]
    box = torch.cat([point - 0.001, point + 0.001])
    boxed = model.get_image_features(pixel_values, boxes=box.view(1, 1, 4))
    assert_close(boxed.last_hidden_state[0, 0], cells.last_hidden_state[0, 27], atol=0.02, rtol=0.05)
    assert_close(boxed.last_hidden_state[0, 1], cells.last_hidden_state[0, -1])  # the whole image


def test_stored_features_need_the_size_of_their_pictures_for_boxes(make_region_model):
    features = torch.randn(1, 16, 16)
    with pytest.raises(ValueError, match="pass `image_size=\\(height, width\\)`"):
        make_region_model().get_image_features(image_features=features, output_boxes=True)
    with pytest.raises(ValueError, match="holds 15 cells, which are no square"):
        make_region_model(region_grid_size=2).get_image_features(image_features=features[:, 1:])
    with pytest.raises(ValueError, match="has 12 channels and the model reads 16"):
        make_region_model().get_image_features(image_features=features[..., :12])


@torch.no_grad()
def test_principal_components_keep_the_products_of_features(make_region_model):
    encoder = make_region_model(reduced_feature_size=6).get_encoder()
    sample = torch.randn(200, 6) @ torch.randn(6, 16) + 3  # six numbers say all
    encoder.fit_reduction(sample)
    reduced = encoder.reduce_features(sample)
    assert_close(reduced.mean(dim=0), torch.zeros(6), atol=1e-4, rtol=0)
    assert reduced.var(dim=0, unbiased=False).mean().item() == pytest.approx(1, rel=1e-3)
    centred = sample - sample.mean(dim=0)
    scale = reduced.norm() ** 2 / centred.norm() ** 2
    assert_close(reduced @ reduced.T, scale * centred @ centred.T, rtol=1e-3, atol=1e-3)
    assert not any(parameter.requires_grad for parameter in encoder.reduction.parameters())
    with pytest.raises(ValueError, match="`reduced_feature_size` is 6 with 3 regions"):
        encoder.fit_reduction(sample[:3])


def test_more_components_than_channels_are_refused(make_region_model):
    with pytest.raises(ValueError, match="`reduced_feature_size` is 16 and the CNN has 16 channels"):
        make_region_model(reduced_feature_size=16)


# --- What is seen of a picture ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "size", "seen"),
    [
        ({"size": {"height": 48, "width": 48}, "do_center_crop": False}, (200, 100), (0, 0, 200, 100)),
        ({"size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 48}}, (200, 100), (50, 0, 150, 100)),
        (
            {"size": {"shortest_edge": 64}, "crop_size": {"height": 48, "width": 48}},
            (300, 400),
            (37.5, 87.5, 262.5, 312.5),
        ),
    ],
    ids=["squashed", "cropped", "cropped more"],
)
def test_the_part_that_is_seen_is_found(tiny_processor, options, size, seen):
    tiny_processor.image_processor = BitImageProcessorPil(**options, do_convert_rgb=True)
    view = find_view(tiny_processor, Image.new("RGB", size))
    assert view.box == pytest.approx(seen, abs=0.01 * max(size))
    assert view.to_pixels([0.0, 0.0, 1.0, 1.0]) == pytest.approx(view.box)
    inside = (120, 140, 140, 160) if size == (300, 400) else (90, 20, 140, 70)
    assert view.to_pixels(view.to_parts([inside])[0].tolist()) == pytest.approx(inside, abs=1e-3)


def test_the_view_of_one_grey_channel_is_that_of_three(tiny_processor):
    def grey(images, return_tensors):
        pixel_values = tiny_processor(images=images, return_tensors=return_tensors)["pixel_values"]
        return {"pixel_values": pixel_values.mean(axis=1, keepdims=True)}

    image = Image.new("RGB", (200, 100))
    assert find_view(grey, image).box == pytest.approx(find_view(tiny_processor, image).box, abs=1e-3)


@pytest.mark.parametrize(
    ("box", "seen"),
    [
        ((0, 0, 30, 100), (50, 0, 51, 100)),
        ((170, 20, 200, 40), (149, 20, 150, 40)),
        ((20, 0, 50.2, 50), (50, 0, 51, 50)),
        ((20, 0, 90, 50), (50, 0, 90, 50)),
        ((149.5, 0, 150, 50), (149.5, 0, 150, 50)),
    ],
)
def test_a_box_that_is_cropped_away_keeps_the_pixel_at_the_edge(box, seen):
    view = View(200, 100, (50.0, 0.0, 150.0, 100.0))
    assert view.to_pixels(view.to_parts([box])[0].tolist()) == pytest.approx(seen, abs=1e-3)


# --- Boxes of a detector ---------------------------------------------------------------------------------------------


SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.fixture
def yolos():
    """A detector with random weights of 5 boxes, whose picture is no square, and its image processor."""
    config = YolosConfig(image_size=[48, 96], num_detection_tokens=5, num_labels=3, **SIZES, initializer_range=0.5)
    image_processor = YolosImageProcessorPil(size={"height": 48, "width": 96})
    detector = AutoModelForObjectDetection.from_config(config).eval()
    torch.nn.init.normal_(detector.vit.embeddings.detection_tokens)  # or all boxes are one
    return detector, image_processor


@pytest.fixture
def deformable_detr():
    """A detector with random weights that ranks pairs of a box and a class."""
    config = DeformableDetrConfig(
        use_timm_backbone=False,
        backbone=None,
        use_pretrained_backbone=False,
        backbone_config=ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", out_features=["stage2"]
        ),
        num_feature_levels=1,
        num_queries=4,
        num_labels=30,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
    )
    image_processor = DeformableDetrImageProcessorPil(size={"height": 64, "width": 64})
    return AutoModelForObjectDetection.from_config(config).eval(), image_processor


def picture_of_noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@torch.no_grad()
def test_boxes_of_a_detector_are_in_pixels_of_the_picture(yolos):
    detector, image_processor = yolos
    image = picture_of_noise(200, 60)
    outputs = detector(**image_processor(images=image, return_tensors="pt"))
    x, y, width, height = outputs.pred_boxes[0].T  # the middle and the size, in parts of the picture
    edges = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], dim=1).clamp(0, 1)
    certain = outputs.logits.softmax(-1)[0, :, :-1].amax(-1).argsort(descending=True)  # the last class is none
    expected = (edges * torch.tensor([200, 60, 200, 60]))[certain]
    assert_close(torch.tensor(detect_boxes(detector, image_processor, image)), expected)
    assert_close(torch.tensor(detect_boxes(detector, image_processor, image, num_boxes=2)), expected[:2])


def test_a_box_is_found_once_whatever_its_classes(deformable_detr):
    boxes = detect_boxes(*deformable_detr, picture_of_noise(80, 60))
    assert len(boxes) == len(set(boxes)) == 4


def test_where_nothing_is_found_the_whole_picture_is_a_box(yolos):
    assert detect_boxes(*yolos, picture_of_noise(50, 40), threshold=1.0) == [(0, 0, 50, 40)]


def test_boxes_of_a_detector_are_aligned_and_described(yolos, make_region_model, tiny_model, tiny_processor):
    processor = CnnRnnAlignmentProcessor(tiny_processor.image_processor, tiny_processor.tokenizer)
    image = picture_of_noise(60, 60)
    boxes = detect_boxes(*yolos, image)
    snippets = make_region_model().align(image, "a dog jumps over a triangle", processor, boxes=boxes, cells_only=True)
    assert all(min(abs(torch.tensor(boxes) - torch.tensor(box)).amax(dim=1)) < 0.01 for box, _, _ in snippets)
    regions = caption_regions(tiny_model, tiny_processor, image, boxes, iou_threshold=1.0)
    assert {region["box"] for region in regions} == set(boxes)


def test_what_is_no_detector_is_refused(yolos, tiny_processor):
    image = picture_of_noise(50, 40)
    with pytest.raises(TypeError, match="is a BitImageProcessorPil, which finds no boxes: pass that of the detector"):
        detect_boxes(yolos[0], tiny_processor.image_processor, image)
    with pytest.raises(ValueError, match="`num_boxes` is 0: pass 1 or more"):
        detect_boxes(*yolos, image, num_boxes=0)
