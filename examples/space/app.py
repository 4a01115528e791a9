"""
Show a page that describes pictures, as a Space of the Hub or on your own machine.

    MODEL_ID=user/captioner python app.py
"""

import os
import sys
from pathlib import Path

import gradio as gr
from captioner import Captioner, Sentence


# the captioner of the owner on a Space, the result of `make demo` on your own machine
OWNER = os.environ.get("SPACE_AUTHOR_NAME")
MODEL_ID = os.environ.get("MODEL_ID") or (f"{OWNER}/shapes-captioner" if OWNER else "outputs/shapes")
EXAMPLES = sorted(map(str, (Path(__file__).parent / "examples").iterdir()))
SEARCH, CHANCE = "the most probable", "drawn by chance"
HOURLY = (3600, 3600)
# fonts that every machine has: none is loaded from elsewhere
THEME = gr.themes.Soft(primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
CSS = """
#sentence textarea { font-size: 1.35rem; line-height: 1.4; }
#table * { font-family: var(--font); }
#maps .caption-label { font-size: 0.75rem; max-width: 100%; }
"""


def describe(picture, prompt, num_sentences, way, num_beams, temperature, max_new_tokens):
    """Return the best sentence, the table of all, the maps of the best, and for `choose` all sentences with their maps."""
    if picture is None:
        raise gr.Error("There is no picture: upload one, take a photograph or choose an example.", title="No picture")
    try:
        sentences = captioner.describe(
            picture,
            num_sentences=num_sentences,
            num_beams=num_beams,
            temperature=temperature if way == CHANCE else None,
            max_new_tokens=max_new_tokens,
            prompt=prompt or "",
        )
    except ValueError as error:
        raise gr.Error(str(error), title="No sentence") from error
    table = [[sentence.text, f"{sentence.log_probability:.2f}"] for sentence in sentences]
    choices = {sentence.text: label_maps(sentence) for sentence in sentences}
    return sentences[0].text, table, choices[sentences[0].text], choices


def label_maps(sentence: Sentence) -> list[tuple]:
    """Label each map with its word and the word's probability."""
    labels = [f"{word} · {p:.0%}" for word, p in zip(sentence.words, sentence.word_probabilities, strict=True)]
    return list(zip(sentence.maps, labels, strict=False))


def choose(choices, event: gr.SelectData):
    """Return the sentence that was clicked in the table, and its maps."""
    text = event.row_value[0]  # its number is another one where the table is sorted
    return text, choices[text]


def build() -> gr.Blocks:
    name = MODEL_ID if os.path.isdir(MODEL_ID) else f"[{MODEL_ID}](https://huggingface.co/{MODEL_ID})"
    with gr.Blocks(title="Image captioning", analytics_enabled=False, delete_cache=HOURLY) as page:
        gr.Markdown(f"# A CNN looks, an RNN writes\nSentences about pictures, by {name}.")
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                picture = gr.Image(
                    label="Picture", sources=["upload", "webcam", "clipboard"], height=340, elem_id="picture"
                )
                # the file as it is, whatever is in it: the captioner opens it, and says what is wrong with it
                picture.preprocess = lambda payload: payload and payload.path
                button = gr.Button("Describe", variant="primary")
                examples = gr.Column()
                with gr.Accordion("Settings", open=False):
                    prompt = gr.Textbox(label="The sentence begins with", placeholder="a ...", max_lines=1)
                    num_sentences = gr.Slider(1, 10, 3, step=1, precision=0, label="Sentences")
                    way = gr.Radio([SEARCH, CHANCE], value=SEARCH, label="Sentences are")
                    num_beams = gr.Slider(1, 10, 3, step=1, precision=0, label="Beams of the search")
                    temperature = gr.Slider(0.1, 2.0, 1.0, step=0.1, label="Temperature of chance", visible=False)
                    default = min(50, captioner.model.generation_config.max_length - 1)
                    max_new_tokens = gr.Slider(1, 50, default, step=1, precision=0, label="Words at most")
            with gr.Column(scale=3, min_width=320):
                sentence = gr.Textbox(label="Sentence", lines=2, elem_id="sentence", buttons=["copy"])
                table = gr.Dataframe(
                    headers=["sentence", "log-probability"],
                    datatype=["str", "number"],
                    column_widths=["75%", "25%"],
                    label="All sentences; a click chooses one",
                    wrap=True,
                    interactive=False,
                    buttons=[],
                    elem_id="table",
                )
                gr.Markdown(
                    "Where it looked for each word, and the word's probability", visible=captioner.has_attention
                )
                maps = gr.Gallery(
                    label="Where it looked for each word",
                    show_label=False,
                    columns=5,
                    height="auto",
                    object_fit="contain",
                    buttons=["download", "fullscreen"],
                    visible=captioner.has_attention,
                    elem_id="maps",
                )
        choices = gr.State()
        inputs = [picture, prompt, num_sentences, way, num_beams, temperature, max_new_tokens]
        with examples:
            gr.Examples(EXAMPLES, picture, cache_examples=False, elem_id="examples")
        button.click(describe, inputs, [sentence, table, maps, choices], api_name="describe")
        table.select(choose, choices, [sentence, maps], api_visibility="private")
        way.change(
            lambda way: (gr.Slider(visible=way == SEARCH), gr.Slider(visible=way == CHANCE)),
            way,
            [num_beams, temperature],
            api_visibility="private",
        )
    return page


if __name__ == "__main__":
    try:
        captioner = Captioner(MODEL_ID)
    except (OSError, ValueError) as error:
        sys.exit(f"MODEL_ID is '{MODEL_ID}', which is no captioner that loads ({error}): set MODEL_ID to one.")
    build().launch(theme=THEME, css=CSS, footer_links=["api"])
