"""
Register the package's classes with transformers' Auto classes and pipelines, without importing transformers.

An import hook watches transformers: as soon as a file with an Auto class has been imported, ours are entered there. So
`import modeling_cnnrnn` costs nothing, and after it `from transformers import AutoConfig` knows `"cnnrnn"`. If transformers
comes first, registration happens at once. When all is registered, the hook is removed.
"""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from .pretrained import DEFAULT_CAPTIONER, FOLDERS


MODELS = f"{__package__}.models"


def _ours(name: str) -> Any:
    """Import the file of `models/` with this role."""
    return import_module(f"{MODELS}.{name}_cnnrnn")


def _exported() -> Any:
    """Import the file of exported captioners."""
    return import_module(f"{__package__}.export.onnx_model")


def _register_config() -> None:
    from transformers import AutoConfig

    AutoConfig.register("cnnrnn", _ours("configuration").CnnRnnConfig, exist_ok=True)
    AutoConfig.register("cnnrnn_alignment", _ours("configuration_alignment").CnnRnnAlignmentConfig, exist_ok=True)
    AutoConfig.register("cnnrnn_ensemble", _ours("configuration_ensemble").CnnRnnEnsembleConfig, exist_ok=True)
    AutoConfig.register("cnnrnn_onnx", _exported().CnnRnnOnnxConfig, exist_ok=True)
    AutoConfig.register("convnet", _ours("configuration_convnet").ConvNetConfig, exist_ok=True)


def _register_models() -> None:
    from transformers import (
        AutoModel,
        AutoModelForImageClassification,
        AutoModelForImageTextToText,
        AutoModelForZeroShotImageClassification,
    )

    config, models = _ours("configuration").CnnRnnConfig, _ours("modeling")
    AutoModel.register(config, models.CnnRnnModel, exist_ok=True)
    AutoModelForImageTextToText.register(config, models.CnnRnnForConditionalGeneration, exist_ok=True)
    config, models = _ours("configuration_alignment").CnnRnnAlignmentConfig, _ours("modeling_alignment")
    AutoModel.register(config, models.CnnRnnAlignmentModel, exist_ok=True)
    AutoModelForZeroShotImageClassification.register(config, models.CnnRnnForImageTextRetrieval, exist_ok=True)
    config, model = _ours("configuration_ensemble").CnnRnnEnsembleConfig, _ours("modeling_ensemble").CnnRnnEnsemble
    AutoModel.register(config, model, exist_ok=True)
    AutoModelForImageTextToText.register(config, model, exist_ok=True)
    config, model = _exported().CnnRnnOnnxConfig, _exported().CnnRnnOnnxForConditionalGeneration
    AutoModelForImageTextToText.register(config, model, exist_ok=True)
    config, models = _ours("configuration_convnet").ConvNetConfig, _ours("modeling_convnet")
    AutoModel.register(config, models.ConvNetModel, exist_ok=True)
    AutoModelForImageClassification.register(config, models.ConvNetForImageClassification, exist_ok=True)


def _register_processor() -> None:
    from transformers import AutoProcessor

    AutoProcessor.register(_ours("configuration").CnnRnnConfig, _ours("processing").CnnRnnProcessor, exist_ok=True)
    config, processor = _ours("configuration_alignment"), _ours("processing_alignment")
    AutoProcessor.register(config.CnnRnnAlignmentConfig, processor.CnnRnnAlignmentProcessor, exist_ok=True)
    config, processor = _ours("configuration_ensemble"), _ours("processing_ensemble")
    AutoProcessor.register(config.CnnRnnEnsembleConfig, processor.CnnRnnEnsembleProcessor, exist_ok=True)
    AutoProcessor.register(_exported().CnnRnnOnnxConfig, _ours("processing").CnnRnnProcessor, exist_ok=True)


def _register_image_processor() -> None:
    from transformers import AutoImageProcessor
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    config = _ours("configuration_convnet").ConvNetConfig
    AutoImageProcessor.register(config, image_processor_classes={"pil": ViTImageProcessorPil}, exist_ok=True)


def _register_pipeline() -> None:
    from transformers import AutoModelForImageTextToText
    from transformers.pipelines import PIPELINE_REGISTRY

    if "image-captioning" not in PIPELINE_REGISTRY.get_supported_tasks():
        PIPELINE_REGISTRY.register_pipeline(
            "image-captioning",
            pipeline_class=_ours("pipeline").ImageToTextPipeline,
            pt_model=AutoModelForImageTextToText,
            type="multimodal",
            default={"model": (str(FOLDERS[DEFAULT_CAPTIONER]), "main")},
        )


# by the file after whose import each is taken, possibly twice; after `register_for_auto_class`, `save_pretrained` writes the
# code too
_STEPS: dict[str, Callable[[], None]] = {
    "transformers.models.auto.configuration_auto": _register_config,
    "transformers.models.auto.modeling_auto": _register_models,
    "transformers.models.auto.processing_auto": _register_processor,
    "transformers.models.auto.image_processing_auto": _register_image_processor,
    "transformers.pipelines": _register_pipeline,
    f"{MODELS}.loading_cnnrnn": lambda: _ours("loading").PRETRAINED_FOLDERS.update(FOLDERS),
    f"{MODELS}.configuration_cnnrnn": lambda: _ours("configuration").CnnRnnConfig.register_for_auto_class(),
    f"{MODELS}.configuration_alignment_cnnrnn": lambda: _ours(
        "configuration_alignment"
    ).CnnRnnAlignmentConfig.register_for_auto_class(),
    f"{MODELS}.configuration_convnet_cnnrnn": lambda: _ours(
        "configuration_convnet"
    ).ConvNetConfig.register_for_auto_class(),
    f"{MODELS}.configuration_ensemble_cnnrnn": lambda: _ours(
        "configuration_ensemble"
    ).CnnRnnEnsembleConfig.register_for_auto_class(),
    f"{MODELS}.modeling_ensemble_cnnrnn": lambda: _ours("modeling_ensemble").CnnRnnEnsemble.register_for_auto_class(
        "AutoModelForImageTextToText"
    ),
    f"{MODELS}.modeling_convnet_cnnrnn": lambda: _ours(
        "modeling_convnet"
    ).ConvNetForImageClassification.register_for_auto_class("AutoModelForImageClassification"),
    f"{MODELS}.modeling_alignment_cnnrnn": lambda: _ours(
        "modeling_alignment"
    ).CnnRnnForImageTextRetrieval.register_for_auto_class("AutoModelForZeroShotImageClassification"),
    f"{MODELS}.modeling_cnnrnn": lambda: _ours("modeling").CnnRnnForConditionalGeneration.register_for_auto_class(
        "AutoModelForImageTextToText"
    ),
    f"{MODELS}.processing_alignment_cnnrnn": lambda: _ours(
        "processing_alignment"
    ).CnnRnnAlignmentProcessor.register_for_auto_class(),
    f"{MODELS}.processing_cnnrnn": lambda: _ours("processing").CnnRnnProcessor.register_for_auto_class(),
}


class _Registration(MetaPathFinder):
    """Watches imports of transformers and of `models/`, and registers when the outermost of them has finished."""

    def __init__(self):
        self.left = set(_STEPS)
        self.imported = {name for name, module in list(sys.modules.items()) if not _is_importing(module)}
        self.depths: dict[int, int] = {}  # imports within imports, by thread

    def find_spec(self, fullname, path=None, target=None) -> ModuleSpec | None:
        if fullname.partition(".")[0] != "transformers" and not fullname.startswith(f"{MODELS}."):
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _WatchedLoader(spec.loader, self)
                return spec
        return None

    @contextmanager
    def importing(self, name: str) -> Iterator[None]:
        """Register after an import; files that import one another are complete only when the outermost is."""
        thread = threading.get_ident()
        self.depths[thread] = self.depths.get(thread, 0) + 1
        try:
            yield
            self.imported.add(name)
            if self.depths[thread] == 1:
                self.register()
        finally:
            self.depths[thread] -= 1
            if not self.depths[thread]:
                del self.depths[thread]

    def register(self) -> None:
        """Take the steps whose files have been imported; a step may import the files of another."""
        while steps := [name for name in list(self.left) if name in self.imported]:
            for name in steps:
                try:
                    _STEPS[name]()
                except (ImportError, AttributeError, RuntimeError):
                    # threads that wait for each other's files get them incomplete: the last one to finish takes the step
                    if len(self.depths) > 1:
                        return
                    raise
                self.left.discard(name)
        if not self.left and self in sys.meta_path:
            sys.meta_path.remove(self)


def _is_importing(module: Any) -> bool:
    return getattr(getattr(module, "__spec__", None), "_initializing", False)


class _WatchedLoader(Loader):
    """Loads a module as its own loader does, which takes its place again before the module runs."""

    def __init__(self, loader: Loader, registration: _Registration):
        self.loader, self.registration = loader, registration

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        module.__loader__ = self.loader
        with self.registration.importing(module.__name__):
            self.loader.exec_module(module)


def register() -> None:
    """Register with what has been imported of transformers, and later with what will be."""
    registration = _Registration()
    sys.meta_path.insert(0, registration)
    with registration.importing(__package__ or ""):
        pass
