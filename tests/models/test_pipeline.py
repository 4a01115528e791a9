"""The `image-to-text` pipeline: images of every source in, sentences and their log-probabilities out."""

import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from PIL import Image
from transformers.pipelines.pt_utils import KeyDataset

from modeling_cnnrnn.models.pipeline_cnnrnn import ImageToTextPipeline, pipeline


@pytest.fixture
def images() -> list[Image.Image]:
    return [Image.new("RGB", (32, 32), colour) for colour in ("red", "black", "white", "blue", "green")]


@pytest.fixture
def folder(tmp_path, model, tiny_processor) -> str:
    model.save_pretrained(tmp_path)
    tiny_processor.save_pretrained(tmp_path)
    return str(tmp_path)


def sentences(outputs) -> list[list[str]]:
    return [[record["generated_text"] for record in output] for output in outputs]


# --- what goes in and comes out -------------------------------------------------------------------------------------


def test_one_image_gives_a_list_with_one_dictionary(pipe, images):
    output = pipe(images[0])
    assert isinstance(output, list)
    assert [set(record) for record in output] == [{"generated_text"}]


def test_a_list_of_images_gives_a_list_of_lists(pipe, images):
    outputs = pipe(images)
    assert outputs == [pipe(image) for image in images]
    assert len({text for (text,) in sentences(outputs)}) == 5


def test_the_sentence_is_what_generate_writes(pipe, model, tiny_processor, images):
    ids = model.generate(**tiny_processor(images=images[0], return_tensors="pt"))
    assert sentences([pipe(images[0])]) == [tiny_processor.batch_decode(ids, skip_special_tokens=True)]


@pytest.mark.parametrize("batch_size", [2, 5, 8])
def test_batches_give_what_single_images_give(pipe, images, batch_size):
    assert pipe(images, batch_size=batch_size) == pipe(images)


def test_images_may_be_paths_and_arrays(pipe, images, tmp_path):
    expected = pipe(images[0])
    images[0].save(tmp_path / "image.png")
    assert pipe(tmp_path / "image.png") == expected
    assert pipe(str(tmp_path / "image.png")) == expected
    assert pipe(np.asarray(images[0])) == expected
    assert pipe(torch.from_numpy(np.asarray(images[0]) / 255).permute(2, 0, 1)) == expected


def test_an_array_of_four_dimensions_is_a_list_of_images(pipe, images):
    assert pipe(np.stack([np.asarray(image) for image in images])) == pipe(images)


def test_transparency_is_laid_on_white(pipe):
    assert pipe(Image.new("RGBA", (8, 8), (0, 0, 0, 0))) == pipe(Image.new("RGB", (8, 8), "white"))
    clear, white = (
        pipe.preprocess(Image.new("RGBA", (8, 8), (0, 0, 0, 0))),
        pipe.preprocess(Image.new("RGB", (8, 8), "white")),
    )
    assert torch.equal(clear["pixel_values"], white["pixel_values"])


def test_streams_are_read_as_they_come(pipe, images):
    expected = pipe(images)
    dataset = Dataset.from_dict({"image": images, "name": list("abcde")})
    streams = [
        KeyDataset(dataset, "image"),
        (image for image in images),
        dataset["image"],
        dataset,
        dataset.to_iterable_dataset(),
    ]
    for stream in streams:
        outputs = pipe(stream, batch_size=2)
        assert not isinstance(outputs, list)
        assert list(outputs) == expected


def test_images_is_another_name_of_inputs(pipe, images):
    assert pipe(images=images[0]) == pipe(images[0])


def test_a_row_without_an_image_is_an_error(pipe):
    with pytest.raises(ValueError, match=r"dictionary with \['photo'\] and no 'image'"):
        pipe({"photo": 1})


@pytest.mark.parametrize(("inputs", "message"), [(None, "`inputs` is None"), ([], "`inputs` is an empty list")])
def test_no_image_is_an_error(pipe, inputs, message):
    with pytest.raises(ValueError, match=message):
        pipe(inputs)


def test_an_image_that_cannot_be_read_is_named(pipe, tmp_path):
    (tmp_path / "text.jpg").write_text("not an image")
    with pytest.raises(ValueError, match=r"text\.jpg'\) is not an image that can be read"):
        pipe(tmp_path / "text.jpg")


# --- options --------------------------------------------------------------------------------------------------------


def test_a_prompt_begins_the_sentence(pipe, images):
    for text in sentences(pipe(images, prompt="A red square", batch_size=2)):
        assert text[0].startswith("a red square")
    assert pipe(images[0], prompt="") == pipe(images[0])
    with pytest.raises(ValueError, match=r"`prompt` is \['a', 'b'\]: pass one string"):
        pipe(images[:2], prompt=["a", "b"])


def test_max_new_tokens_limits_the_sentence_after_the_prompt(pipe, images):
    for image in images:
        assert len(pipe(image, max_new_tokens=2)[0]["generated_text"].split()) <= 2
    text = pipe(images[0], prompt="a red square", max_new_tokens=2, generate_kwargs={"min_new_tokens": 2})[0][
        "generated_text"
    ]
    assert len(text.split()) == 5


def test_generate_kwargs_are_those_of_generate(pipe, model, tiny_processor, images):
    ids = model.generate(**tiny_processor(images=images[1], return_tensors="pt"), num_beams=4)
    expected = tiny_processor.batch_decode(ids, skip_special_tokens=True)
    assert sentences([pipe(images[1], generate_kwargs={"num_beams": 4})]) == [expected]


@pytest.mark.parametrize("name", ["max_new_tokens", "num_return_sequences"])
def test_an_option_given_twice_is_an_error(pipe, images, name):
    with pytest.raises(ValueError, match=f"`{name}` is given as an argument and in `generate_kwargs`"):
        pipe(images[0], **{name: 2}, generate_kwargs={name: 2})


def test_options_of_the_constructor_are_the_defaults_of_calls(model, tiny_processor, images):
    pipe = ImageToTextPipeline(model, processor=tiny_processor, device="cpu", max_new_tokens=1, return_scores=True)
    (record,) = pipe(images[0])
    assert len(record["generated_text"].split()) <= 1
    assert "score" in record
    assert "score" not in pipe(images[0], return_scores=False)[0]


def test_several_sentences_stay_with_their_image(pipe, images):
    options = {"num_return_sequences": 3, "generate_kwargs": {"num_beams": 4}}
    expected = [pipe(image, **options) for image in images]
    assert [len(output) for output in expected] == [3] * 5
    assert len({tuple(texts) for texts in sentences(expected)}) > 1
    assert pipe(images, batch_size=2, **options) == expected


def test_timeout_ends_the_wait_for_a_url(pipe):
    class Slow(BaseHTTPRequestHandler):
        def do_GET(self):
            time.sleep(1)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        threading.Thread(target=partial(server.serve_forever, poll_interval=0.01), daemon=True).start()
        with pytest.raises(OSError, match=r"cannot be downloaded: .*(timed out|it takes longer than 0\.1 seconds)"):
            pipe(f"http://127.0.0.1:{server.server_port}/image.png", timeout=0.1)
        server.shutdown()


# --- scores ---------------------------------------------------------------------------------------------------------


def rescore(model, processor, image, text: str, prompt: str, finished: bool) -> float:
    """The log-probability of a sentence after its prompt, from one forward pass."""
    ids = processor(text=text, return_tensors="pt")["input_ids"]
    if finished:
        ids = torch.cat([ids, torch.tensor([[processor.tokenizer.eos_token_id]])], dim=1)
    inputs = processor(images=image, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs, decoder_input_ids=ids[:, :-1]).logits
    steps = logits.log_softmax(dim=-1).gather(2, ids[:, 1:, None])[0, :, 0]
    return steps[len(prompt.split()) :].sum().item()


@pytest.mark.parametrize("prompt", ["", "circles"])
@pytest.mark.parametrize(
    ("generate_kwargs", "num_return_sequences"),
    [
        ({}, 1),
        ({"num_beams": 4}, 4),
        ({"num_beams": 3, "length_penalty": 2.0}, 1),
        ({"do_sample": True, "temperature": 2.0, "top_k": 5}, 4),
        ({"do_sample": True, "num_beams": 3}, 2),
    ],
    ids=["greedy", "beams", "penalty", "sampling", "beam-sampling"],
)
def test_a_score_is_the_log_probability_from_a_forward_pass(
    pipe, model, tiny_processor, images, generate_kwargs, num_return_sequences, prompt
):
    limit = 6
    model.lm_head.bias.data[tiny_processor.tokenizer.eos_token_id] = 4.0  # sentences of different lengths
    outputs = pipe(
        images,
        prompt=prompt,
        batch_size=3,
        return_scores=True,
        max_new_tokens=limit,
        num_return_sequences=num_return_sequences,
        generate_kwargs=generate_kwargs,
    )
    lengths = set()
    for image, output in zip(images, outputs, strict=True):
        for record in output:
            num_words = len(record["generated_text"].split()) - len(prompt.split())
            lengths.add(num_words)
            expected = rescore(model, tiny_processor, image, record["generated_text"], prompt, num_words < limit)
            assert record["score"] == pytest.approx(expected, abs=1e-4)
    assert min(lengths) < limit  # sentences that end, with padding after the end


# --- where it comes from --------------------------------------------------------------------------------------------


def test_transformers_makes_it_from_a_folder_or_from_a_model(folder, model, tiny_processor, images, monkeypatch):
    # transformers warns about the name of the task, in a way that `logging` cannot print
    monkeypatch.setattr(transformers.pipelines.logger, "warning_once", lambda *args: None)
    expected = ImageToTextPipeline(model, processor=tiny_processor, device="cpu")(images)
    make = partial(transformers.pipeline, "image-to-text", pipeline_class=ImageToTextPipeline, device="cpu")
    assert make(model=folder)(images) == expected
    assert make(model=model, processor=tiny_processor)(images) == expected
    parts = {"tokenizer": tiny_processor.tokenizer, "image_processor": tiny_processor.image_processor}
    assert make(model=model, **parts)(images) == expected
    assert make(model=type(model).from_pretrained(folder))(images) == expected  # the model knows where it is from


@pytest.mark.parametrize("task", ["image-to-text", "image-captioning"])
def test_our_function_makes_it_from_the_name_of_the_task(folder, images, task):
    pipe = pipeline(task, model=folder, device="cpu")
    assert (type(pipe), pipe.task) == (ImageToTextPipeline, "image-to-text")
    assert type(pipe.processor).__name__ == "CnnRnnProcessor"
    assert len(pipe(images)) == 5


def test_our_function_leaves_other_tasks_to_transformers(folder, tiny_processor, images):
    pipe = pipeline("image-text-to-text", model=folder, processor=tiny_processor, device="cpu")
    assert type(pipe) is transformers.ImageTextToTextPipeline
    assert pipe(images[0], text="a red", generate_kwargs={"max_new_tokens": 3})[0]["generated_text"].startswith("a red")
    assert pipe(images[0], text="", generate_kwargs={"max_new_tokens": 3})[0]["input_text"] == ""


def test_parts_that_are_passed_replace_those_of_the_processor(folder, tiny_processor):
    image_processor = transformers.ViTImageProcessorPil(size={"height": 40, "width": 40})
    pipe = pipeline("image-to-text", model=folder, image_processor=image_processor, device="cpu")
    assert pipe.preprocess(Image.new("RGB", (8, 8)))["pixel_values"].shape == (1, 3, 40, 40)
    assert pipe.tokenizer.get_vocab() == tiny_processor.tokenizer.get_vocab()


def test_a_model_without_a_processor_is_an_error(model):
    with pytest.raises(ValueError, match="`processor` is None, and `model` was not loaded from anywhere"):
        ImageToTextPipeline(model, device="cpu")
