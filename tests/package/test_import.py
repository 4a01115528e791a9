"""`import modeling_cnnrnn` costs nothing, and afterwards transformers knows the package, whichever came first."""

import copy
import pickle
import subprocess
import sys
import tomllib

import pytest
from support.nursery import run_python
from support.paths import ROOT

import modeling_cnnrnn


# what is registered, asked of transformers alone
KNOWN = """
from transformers import CONFIG_MAPPING, MODEL_MAPPING, PROCESSOR_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers import MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING as ZERO_SHOT
from transformers import IMAGE_PROCESSOR_MAPPING, MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING as CLASSIFICATION
from transformers.pipelines import PIPELINE_REGISTRY

config = CONFIG_MAPPING["cnnrnn"]
classes = config, MODEL_MAPPING[config], MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[config], PROCESSOR_MAPPING[config]
assert [c.__name__ for c in classes] == [
    "CnnRnnConfig", "CnnRnnModel", "CnnRnnForConditionalGeneration", "CnnRnnProcessor"
], classes
assert [c._auto_class for c in (config, *classes[2:])] == ["AutoConfig", "AutoModelForImageTextToText", "AutoProcessor"]
alignment = CONFIG_MAPPING["cnnrnn_alignment"]
classes = [mapping[alignment] for mapping in (MODEL_MAPPING, ZERO_SHOT, PROCESSOR_MAPPING)]
assert [c.__name__ for c in classes] == [
    "CnnRnnAlignmentModel", "CnnRnnForImageTextRetrieval", "CnnRnnAlignmentProcessor"
]
assert [c._auto_class for c in (alignment, classes[1])] == ["AutoConfig", "AutoModelForZeroShotImageClassification"]
convnet = CONFIG_MAPPING["convnet"]
classes = [mapping[convnet] for mapping in (MODEL_MAPPING, CLASSIFICATION)]
assert [c.__name__ for c in classes] == ["ConvNetModel", "ConvNetForImageClassification"]
assert [c._auto_class for c in (convnet, classes[1])] == ["AutoConfig", "AutoModelForImageClassification"]
assert IMAGE_PROCESSOR_MAPPING[convnet]["pil"].__name__ == "ViTImageProcessorPil"
assert "image-captioning" in PIPELINE_REGISTRY.get_supported_tasks()
"""
THREADS = """
import sys, threading
import modeling_cnnrnn

ways = [
    "from transformers import AutoConfig", "from transformers import AutoModel", "from transformers import AutoProcessor",
    "from transformers import pipeline", "from modeling_cnnrnn import CnnRnnConfig", "from modeling_cnnrnn import pipeline",
    "from modeling_cnnrnn import CnnRnnForConditionalGeneration", "from modeling_cnnrnn import CnnRnnProcessor",
]
start = threading.Barrier(len(ways))

def use(way):
    start.wait()
    try:
        exec(way, {})
    except ImportError:
        pass  # transformers does not survive its own first import by several threads

sys.setswitchinterval(1e-4)
threads = [threading.Thread(target=use, args=[way]) for way in ways]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
for way in ways:
    exec(way, {})
"""


def python(code: str) -> str:
    """Standard output of code in a process of its own that has imported nothing."""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_import_loads_no_library():
    loaded = python("import sys, modeling_cnnrnn; print(*{name.partition('.')[0] for name in sys.modules})").split()
    assert "modeling_cnnrnn" in loaded
    assert not {"torch", "transformers", "datasets", "accelerate", "numpy", "PIL", "typer"} & set(loaded)


def test_import_takes_less_than_a_tenth_of_a_second_of_cpu():
    code = "import modeling_cnnrnn, resource as r; u = r.getrusage(r.RUSAGE_SELF); print(u.ru_utime + u.ru_stime)"
    assert min(float(python(code)) for _ in range(3)) < 0.1


@pytest.mark.parametrize(
    "imports",
    [
        "import modeling_cnnrnn",
        "from transformers import AutoModel, pipeline; import modeling_cnnrnn",
        # files of transformers that import one another: BLIP's is half imported when it comes to the Auto classes
        "import modeling_cnnrnn; from transformers import BlipForConditionalGeneration",
        "from modeling_cnnrnn import CnnRnnConfig",
        "from modeling_cnnrnn.models.pipeline_cnnrnn import pipeline",
        THREADS,
    ],
    ids=["package first", "transformers first", "half imported", "one class", "one file", "threads"],
)
def test_transformers_knows_the_package(imports):
    finished = run_python("-c", imports + KNOWN)
    assert finished.returncode == 0, finished.stderr


def test_the_hook_is_gone_when_all_is_registered():
    code = "import modeling_cnnrnn; from transformers import pipeline; from modeling_cnnrnn import CnnRnnProcessor; "
    code += "import sys; assert not [f for f in sys.meta_path if type(f).__module__.startswith('modeling_cnnrnn')]"
    finished = run_python("-c", code)
    assert finished.returncode == 0, finished.stderr


def test_a_missing_library_is_named():
    """As an installation without torchvision's counterpart: whatever our files need and do not find."""
    code = "import sys, modeling_cnnrnn; sys.modules['torch'] = None; from modeling_cnnrnn import CnnRnnModel"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "torch" in finished.stderr.splitlines()[-1]


def test_all_public_names_are_there():
    for name in modeling_cnnrnn.__all__:
        assert getattr(modeling_cnnrnn, name).__name__ == name
    assert set(modeling_cnnrnn.__all__) <= set(dir(modeling_cnnrnn))


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'CnnRnnTrainer'"):
        modeling_cnnrnn.CnnRnnTrainer  # noqa: B018


def test_classes_can_be_pickled_and_copied():
    for name in modeling_cnnrnn.__all__:
        value = getattr(modeling_cnnrnn, name)
        assert pickle.loads(pickle.dumps(value)) is copy.deepcopy(value) is value


def test_the_version_is_written_once():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" in project["project"]["dynamic"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "modeling_cnnrnn.__version__"}
