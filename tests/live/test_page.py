"""The page in Chromium (`make test-space`): each thing that it shows, and each wish that it sends."""

import json
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.live_training import CLASSES, make_trainer

from modeling_cnnrnn.live.page import build_page
from modeling_cnnrnn.live.pictures import png
from modeling_cnnrnn.training.callbacks import TrainerCallback


pytestmark = pytest.mark.browser
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Slow(TrainerCallback):
    """Leave time to watch."""

    def on_step_end(self, trainer, loss):
        time.sleep(0.05)


@pytest.fixture(scope="module")
def chromium():
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium):
    """`open_page(url)`: a page that has thrown no error and has asked for nothing elsewhere."""
    contexts, errors = [], []

    def open_it(url: str, width: int = 1280, height: int = 900, script: str = ""):
        context = chromium.new_context(viewport={"width": width, "height": height})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        own = url.partition("?")[0]
        page.on("request", lambda r: r.url.startswith((own, "data:", "blob:")) or errors.append(r.url))
        page.add_init_script(script)
        page.goto(url)
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert errors == []


@pytest.fixture
def training(tmp_path, monkeypatch):
    """A training that goes on while it is watched."""
    monkeypatch.setattr("modeling_cnnrnn.training.log.save_training_curves", lambda *arguments: None)
    monkeypatch.setattr("modeling_cnnrnn.training.live_session.LOOK_SECONDS", 0.2)
    monkeypatch.setattr("modeling_cnnrnn.training.live_session.LOOK_SHARE", 1.0)
    options = {"max_train_steps": 100_000, "eval_epochs": 5, "save_total_limit": 9, "lr_scheduler_type": "constant"}
    trainer = make_trainer(tmp_path, **options)
    trainer.draw = lambda: None
    trainer.callbacks.append(Slow())

    def train():
        try:
            trainer.train()
        except SystemExit:
            pass
        except ValueError as error:
            trainer.error = error

    thread = threading.Thread(target=train)
    trainer.thread = thread
    thread.start()
    yield trainer
    trainer.live.tracker.wish({"paused": False, "stop": True})
    thread.join(60)
    assert not thread.is_alive()


def wait_for(page, expression: str):
    """Wait until an expression is true; Playwright's own way is a string that the page's policy does not let in."""
    deadline = time.monotonic() + 60
    while not page.evaluate(f"Boolean({expression})"):
        assert time.monotonic() < deadline, expression
        time.sleep(0.05)


def test_the_page_shows_the_training_as_it_goes_on(training, open_page):
    page = open_page(training.live.tracker.server.url)
    page.wait_for_selector("#confusion td")
    page.wait_for_selector(".layer img")
    assert page.locator("h1").text_content().startswith("classifier: ")
    # curves: both losses, both accuracies, the learning rate, the speed
    legends = page.locator(".panel .legend").all_text_contents()
    assert "loss" in legends[0]
    assert "training" in legends[0]
    assert "validation" in legends[0]
    assert "accuracy" in legends[1]
    assert legends[2].startswith("learning rate 0.24")
    assert legends[3].startswith("examples a second")
    painted = """() => [...document.querySelectorAll("canvas")].map((c) =>
        new Set(c.getContext("2d").getImageData(0, 0, c.width, c.height).data).size)"""
    assert min(page.evaluate(painted)) > 10
    for button, text in (("images_seen", "images seen"), ("cpu_seconds", "cpu seconds"), ("step", "step")):
        page.click(f"[data-axis={button}]")
        wait_for(page, f"document.querySelector('canvas').ariaLabel.includes('against {text}')")
    # predictions: three bars each, those of the right class green
    bars = page.evaluate(
        """() => [...document.querySelectorAll("#predictions .picture")].map((p) => [p.querySelector(".label").textContent,
        [...p.querySelectorAll(".bar")].map((b) => [b.querySelector("b").textContent, b.classList.contains("right")])])"""
    )
    assert len(bars) == 6
    for label, answers in bars:
        assert sorted(name for name, _ in answers) == CLASSES
        assert [name for name, is_right in answers if is_right] == [label]
    # the inside, with filters of the first layer in color
    kinds = page.locator(".layer b").all_text_contents()
    assert kinds[0] == "Conv2d"
    assert kinds[-1] == "Linear"
    first = page.locator(".layer").first.text_content()
    assert "11 x 11 x 24" in first
    assert "312 parameters" in first
    assert " to " in first
    step = page.evaluate("state.points.at(-1).step")
    wait_for(page, f"state.points.at(-1).step > {step}")
    # a tab that is closed and opened again
    page.close()
    again = open_page(training.live.tracker.server.url)
    wait_for(again, f"state.points.length > {step}")
    assert again.evaluate("state.points[0].step") == 1


def test_controls_of_the_page_change_the_training(training, open_page):
    page = open_page(training.live.tracker.server.url)
    for control, value in (("learning_rate", "0.1"), ("momentum", "0.5"), ("weight_decay", "0.01")):
        page.fill(f"input[name={control}]", value)
        page.press(f"input[name={control}]", "Enter")
        wait_for(page, f"state.controls.{control} === {value}")
    page.fill("input[name=per_device_train_batch_size]", "8")
    page.press("input[name=per_device_train_batch_size]", "Enter")
    wait_for(page, "state.changes.length === 4")
    wait_for(page, "document.querySelector('#changes').children.length === 4")
    assert "batch size 12 → 8" in page.locator("#changes").text_content()
    assert training.optimizer.param_groups[0]["lr"] == 0.1
    # a refused value is said, and does not stay in its field
    page.fill("input[name=momentum]", "7")
    page.press("input[name=momentum]", "Enter")
    page.wait_for_selector("#note:not([hidden])")
    assert page.locator("#note").text_content() == "`momentum` is '7': pass a number between 0 and 1."
    wait_for(page, "document.querySelector('input[name=momentum]').value === '0.5'")


def test_a_training_is_paused_saved_changed_for_another_and_stopped(training, open_page, tmp_path):
    page = open_page(training.live.tracker.server.url)
    page.click("#pause")
    wait_for(page, "state.status.state === 'paused'")
    step = training.state.step
    time.sleep(1)
    assert training.state.step == step
    picture = tmp_path / "own.png"
    Image.fromarray(np.full((40, 50, 3), (0, 0, 250), np.uint8)).save(picture)
    page.set_input_files("#file", picture)  # also while it waits
    page.wait_for_selector("#answer .bar")
    assert page.locator("#answer .bar").count() == 3
    page.click("#pause")
    wait_for(page, "state.status.state === 'training'")
    page.click("#save")
    wait_for(page, "document.querySelector('#checkpoint').children.length > 0")
    name = page.locator("#checkpoint option").first.text_content()
    assert (tmp_path / name / "trainer_state.json").exists()
    # another network; one that is none is said
    page.click("#design summary")
    text = page.input_value("#network")
    assert json.loads(text)["layers"][0]["channels"] == 8
    page.fill("#network", "alert(1)")
    page.click("#again")
    page.wait_for_selector("#note:not([hidden])")
    assert page.locator("#note").text_content().startswith("The network is no JSON: ")
    page.fill("#network", text.replace('"channels": 8', '"channels": 5'))
    page.click("#again")
    wait_for(page, "state.plan.network.layers[0].channels === 5")
    assert training.model.config.layers[0]["channels"] == 5
    # back to the checkpoint of the first one
    page.select_option("#checkpoint", label=f"earlier-1/{name}")
    page.click("#load")
    wait_for(page, "state.plan.network.layers[0].channels === 8")
    page.click("#stop")
    wait_for(page, "state.status.state === 'stopped'")
    wait_for(page, "document.querySelector('#pause').disabled")
    assert "is saved; resume with" in page.locator("#status").text_content()


def test_pictures_are_dropped_and_pasted_and_too_large_ones_are_said(training, open_page, tmp_path):
    page = open_page(training.live.tracker.server.url)
    give = """([bytes, kind]) => {
        const transfer = new DataTransfer();
        transfer.items.add(new File([new Uint8Array(bytes)], "own.png", { type: "image/png" }));
        const event = kind === "drop" ? new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true })
            : new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true });
        document.querySelector("#answer").replaceChildren();
        document.body.dispatchEvent(event);
    }"""
    picture = tmp_path / "own.png"
    Image.fromarray(np.full((40, 50, 3), (250, 0, 0), np.uint8)).save(picture)
    for kind in ("drop", "paste"):
        page.evaluate(give, [list(picture.read_bytes()), kind])
        page.wait_for_selector("#answer .bar")
    (tmp_path / "large.png").write_bytes(bytes(9_000_000))
    page.set_input_files("#file", tmp_path / "large.png")
    page.wait_for_selector("#note:not([hidden])")
    assert page.locator("#note").text_content() == "The picture has more than 8 MB: send a smaller one."
    (tmp_path / "letter.png").write_text("Dear mother")
    page.set_input_files("#file", tmp_path / "letter.png")
    wait_for(page, "document.querySelector('#note').textContent.includes('is not an image')")


def test_a_loss_that_is_not_finite_is_shown(training, open_page):
    page = open_page(training.live.tracker.server.url)
    page.wait_for_selector(".layer")
    compute_loss = training.compute_loss
    training.compute_loss = lambda *arguments: compute_loss(*arguments) * float("nan")
    page.wait_for_selector("#status.failed")
    assert "pass a smaller --learning_rate" in page.locator("#status").text_content()
    training.thread.join(60)
    assert "nan at step" in str(training.error)


def test_the_page_that_was_written_opens_from_disk_and_asks_for_nothing(training, open_page):
    path = training.output_dir / "training.html"
    while not path.exists():
        time.sleep(0.1)
    training.live.tracker.wish({"paused": True})
    page = open_page(path.as_uri())
    page.wait_for_selector(".layer img")
    assert page.locator("#confusion td").count() == 9
    assert page.locator("#predictions .picture").count() == 6
    assert page.locator("#steering").is_hidden()
    assert page.locator("#own").is_hidden()
    assert "validation" in page.locator(".panel .legend").first.text_content()


def saved_page(path: Path, **state) -> str:
    """A page on disk that shows this."""
    path.write_text(build_page(json.dumps(state)))
    return path.as_uri()


def test_ten_thousand_points_are_drawn_as_few_lines(open_page, tmp_path):
    points = [{"step": step, "train/loss": 1 + 0.5 * (step % 7)} for step in range(10_000)]
    count = """CanvasRenderingContext2D.prototype.lineTo = new Proxy(CanvasRenderingContext2D.prototype.lineTo,
        { apply: (line, ...rest) => { window.lines = (window.lines ?? 0) + 1; return Reflect.apply(line, ...rest) } })"""
    page = open_page(saved_page(tmp_path / "a.html", points={"first": 0, "points": points}), script=count)
    wait_for(page, "window.lines")
    width = page.evaluate("document.querySelector('canvas').clientWidth")
    assert width < page.evaluate("window.lines") < 8 * width
    page.hover("canvas")
    wait_for(page, "document.querySelector('.legend').textContent.includes('training')")


def test_a_word_shows_where_the_captioner_looked(open_page, tmp_path):
    gray = png(Image.new("L", (32, 32), 90))
    words = [{"text": "a", "probability": 0.5, "map": gray}, {"text": "dog", "probability": 0.25, "map": gray}]
    item = {"image": png(Image.new("RGB", (64, 64), "red")), "label": "a red square", "words": words}
    page = open_page(saved_page(tmp_path / "a.html", predictions=[item]))
    assert page.locator(".words button").all_text_contents() == ["a50 %", "dog25 %"]
    assert page.locator(".map").is_hidden()
    page.hover(".words button:nth-child(2)")
    assert page.locator(".map").is_visible()
    assert page.locator(".map").bounding_box() == page.locator(".frame img").first.bounding_box()
    page.hover("h1")
    assert page.locator(".map").is_hidden()


def test_texts_of_strangers_stay_texts(open_page, tmp_path):
    evil = "</script><img src=x onerror=document.title='evil'>"
    confusion = {"classes": [evil, "b"], "matrix": [[1, 0], [0, 1]]}
    item = {"image": png(Image.new("RGB", (8, 8))), "label": evil, "top": [[evil, 1.0]]}
    page = open_page(saved_page(tmp_path / "a.html", confusion=confusion, predictions=[item], plan={"title": evil}))
    assert page.locator("#predictions .label").text_content() == evil
    assert page.locator("#confusion th").nth(1).text_content() == evil
    assert "evil" in page.title()
    assert page.title() != "evil"
