"""The metadata of a model card, by which the Hub finds and shows a model."""

import re
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from .card_facts import hub_name


def card_metadata(facts: dict[str, Any], tags: list[str]) -> ModelCardData:
    """
    Make the metadata of a card, with the scores as its `model-index`.

    Args:
        facts: what [`~modeling_cnnrnn.hub.card_facts.gather_facts`] returns, with the pictures of the card.
        tags: further tags of the model.
    """
    config, dataset, groups = facts["config"], facts["dataset"], facts["groups"]
    eval_results = _eval_results(facts)
    metrics = dict.fromkeys(result.metric_type for result in eval_results)
    optional: dict[str, Any] = {}
    if groups:
        first = next(iter(groups.values()))[0]
        optional["widget"] = [{"src": first["file"], "output": {"text": first["caption"]}}]
    if facts["base_model"] is not None:
        optional["base_model_relation"] = "finetune"
    if facts["energy"].get("grams"):
        optional["co2_eq_emissions"] = _emissions(facts)
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="image-to-text",
        license=facts["license"]["id"],
        license_name=facts["license"]["name"],
        license_link=facts["license"]["link"],
        language=facts["language"],
        base_model=facts["base_model"],
        datasets=[dataset["id"]] if dataset["id"] else None,
        metrics=list(metrics) or None,
        tags=list(dict.fromkeys(["image-captioning", "cnn", config["rnn_type"], *tags])),
        model_name=facts["title"],
        eval_results=eval_results or None,
        **optional,
    )


def _eval_results(facts: dict[str, Any]) -> list[EvalResult]:
    """One entry for each score and beam size."""
    dataset, protocol = facts["dataset"], facts["protocol"]
    evaluated_on = protocol.get("dataset_name")
    title = dataset["title"] if evaluated_on == dataset["name"] else evaluated_on
    return [
        EvalResult(
            task_type="image-to-text",
            task_name="Image captioning",
            dataset_type=hub_name(evaluated_on) or re.sub(r"[^\w.-]+", "-", str(title)).lower(),
            dataset_name=str(title),
            dataset_config=protocol.get("dataset_config_name"),
            dataset_revision=protocol.get("dataset_revision"),
            dataset_split=protocol["split"],
            metric_type=re.sub(r"-\w+$", "", name).lower(),
            metric_name=f"{name} (beam {beam})",
            metric_value=round(scores[name], 4),
        )
        for beam, scores in facts["results"].items()
        for name in facts["scores"]
        if scores.get(name) is not None
    ]


def _emissions(facts: dict[str, Any]) -> dict[str, Any]:
    values = {
        "emissions": facts["energy"]["grams"],
        "source": "codecarbon",
        "training_type": "fine-tuning" if facts["base_model"] else "pre-training",
        "geographical_location": facts["energy"]["country"],
        "hardware_used": facts["energy"]["hardware"],
    }
    return {name: value for name, value in values.items() if value}
