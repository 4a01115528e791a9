"""The repository of an alignment, with its card."""

import json

from huggingface_hub import ModelCard

from modeling_cnnrnn import CnnRnnAlignmentConfig, CnnRnnAlignmentProcessor, CnnRnnForImageTextRetrieval
from modeling_cnnrnn.hub.push import stage_captioner


def test_an_alignment_becomes_a_repository_with_its_recalls(tmp_path, tiny_encoder_config, tiny_tokenizer):
    config = CnnRnnAlignmentConfig.from_tokenizer(tiny_tokenizer, encoder=tiny_encoder_config, embedding_size=8)
    CnnRnnForImageTextRetrieval(config).save_pretrained(tmp_path / "mine")
    CnnRnnAlignmentProcessor.from_image_size(32, tiny_tokenizer).save_pretrained(tmp_path / "mine")
    recalls = {f"{way}_R@{k}": 10.0 * k for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)}
    results = {"alignment": recalls, "split": "test", "dataset_name": "me/photographs"}
    (tmp_path / "mine" / "evaluation").mkdir()
    (tmp_path / "mine" / "evaluation" / "eval_results.json").write_text(json.dumps(results))
    (tmp_path / "staged").mkdir()
    stage_captioner(tmp_path / "mine", tmp_path / "staged", "me/finder", card={"license": "mit"})
    card = ModelCard.load(tmp_path / "staged" / "README.md")
    assert card.data.pipeline_tag == "zero-shot-image-classification"
    assert card.data.license == "mit"
    assert {result.metric_name: result.metric_value for result in card.data.eval_results} == {
        name.replace("_", " "): value for name, value in recalls.items()
    }
    assert "| alignment | 10.0 | 50.0 | 100.0 | 10.0 | 50.0 | 100.0 |" in card.text
    assert "AutoModel.from_pretrained(name, trust_remote_code=True)" in card.text
    assert (tmp_path / "staged" / "modeling_alignment_cnnrnn.py").is_file()
