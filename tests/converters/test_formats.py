"""Each old format: the converted captioner computes and writes what the original's own code did with the same weights."""

import pytest
import torch
from support.old_checkpoints import WRITERS, read_golden, write_checkpoint
from support.old_weights import draw_features, draw_pixels

from modeling_cnnrnn.converters.converting import read_checkpoint


@pytest.fixture(scope="module", params=sorted(WRITERS))
def converted(request, tmp_path_factory):
    """What the original computed, and the converted model with its processor."""
    files = write_checkpoint(request.param, tmp_path_factory.mktemp(request.param))
    return read_golden(request.param), *read_checkpoint(files).make_captioner()


def images_of(golden) -> dict[str, torch.Tensor]:
    if "feature_size" in golden:
        features = draw_features(len(golden["tokens"]), golden.get("num_regions", 1), golden["feature_size"])
        return {"image_features": torch.from_numpy(features)}
    return {"pixel_values": torch.from_numpy(draw_pixels(len(golden["tokens"]), golden["image_size"]))}


def rows_of(golden, processor) -> list[int]:
    """The token of each row of the original."""
    return processor.tokenizer.convert_tokens_to_ids(golden["rows"])


def words_of(golden, processor, sequences: torch.Tensor) -> list[list[int]]:
    """Generated sentences as rows of the original, without the start and what follows the end."""
    rows = {token: row for row, token in enumerate(rows_of(golden, processor))}
    eos = processor.tokenizer.eos_token_id
    sentences = [[int(token) for token in sequence[1:]] for sequence in sequences]
    return [[rows[t] for t in s[: s.index(eos) if eos in s else None]] for s in sentences]


def test_logits_are_those_of_the_original(converted):
    golden, model, processor = converted
    rows = torch.tensor(rows_of(golden, processor))
    with torch.no_grad():
        logits = model(**images_of(golden), decoder_input_ids=rows[torch.tensor(golden["tokens"])]).logits
    if golden.get("are_log_probs"):
        logits = logits.log_softmax(dim=-1)
    torch.testing.assert_close(logits[..., rows], torch.tensor(golden["logits"]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("converted", "num_beams"),
    [(name, int(beams)) for name in sorted(WRITERS) for beams in read_golden(name)["sentences"]],
    indirect=["converted"],
)
def test_sentences_are_those_of_the_original(converted, num_beams):
    golden, model, processor = converted
    sequences = model.generate(**images_of(golden), num_beams=num_beams)
    assert words_of(golden, processor, sequences) == golden["sentences"][str(num_beams)]
