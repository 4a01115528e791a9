# `make demo` and `make test` do everything on a fresh machine: they make .venv, install with constraints.txt, and run.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS ?= constraints.txt
OUTPUT ?= outputs/shapes
SOURCES := modeling_cnnrnn examples tests
# the tests and the demo need no network; tokenizers' threads and forked workers do not go together
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: help install demo watch test test-fast test-oldest test-slow test-java test-space fuzz benchmark-alignment benchmark-metrics benchmark-training pretrained card quality style clean

help:  ## What this file can do
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 20

install: $(VENV)/.dev  ## Make .venv with all that development needs

$(VENV)/.%: pyproject.toml $(CONSTRAINTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --quiet --disable-pip-version-check --no-compile -c $(CONSTRAINTS) -e '.[$*]'
	touch $@

demo: $(VENV)/.train  ## Learn to describe drawn pictures from scratch, in minutes: model, scores and a page of pictures
	$(BIN)/cnnrnn train examples/recipes/shapes.json --output_dir $(OUTPUT)
	$(BIN)/cnnrnn evaluate --model_name_or_path $(OUTPUT) --dataset_name shapes --split test --num_beams 1 3 \
		--output_dir $(OUTPUT)/evaluation

watch: $(VENV)/.live  ## Train a small CNN to tell drawn things apart, without a download, and watch it on a page
	$(BIN)/python examples/train_classifier.py examples/recipes/shapes_classifier.json --report_to live --output_dir $(OUTPUT)_classifier

test: install  ## The tests, in a few minutes
	$(BIN)/python -m pytest -n auto --dist loadfile

SLOWER := metrics/test_scores models/test_image_download models/test_layer_calls models/test_learning models/test_loading
test-fast: install  ## The tests of models, metrics and the rules of the house, in less than a minute
	$(BIN)/python -m pytest -n auto tests/models tests/metrics tests/test_house.py tests/test_files.py \
		$(SLOWER:%=--ignore=tests/%.py) -k 'not a_saved_captioner_is_a_whole_repository and not random_mixtures'

test-oldest: .venv-oldest/constraints.txt  ## The same tests with the oldest versions that pyproject.toml allows
	$(MAKE) test VENV=$(<D) CONSTRAINTS=$<

# but not the oldest torch: another one is gigabytes to fetch, and what needs the newest is found with constraints.txt
.venv-oldest/constraints.txt: pyproject.toml constraints.txt
	mkdir -p $(@D)
	(grep ^torch constraints.txt; grep -oE '"[a-z0-9-]+>=[0-9.]+' pyproject.toml | sed '/torch\|setuptools/d; s/"//; s/>=/==/') > $@

test-slow: install  ## The tests that take minutes each
	$(BIN)/python -m pytest -m slow

test-java: install  ## The metrics against the official scorer, which needs Java
	$(BIN)/pip install --quiet -c $(CONSTRAINTS) -e '.[java]'
	$(BIN)/python -m pytest -m java

test-space: install  ## The Space's page and the exported one in Chromium
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || \
		{ echo "There is no Chromium for test-space: install it (apt-get install chromium)."; exit 1; }
	$(BIN)/pip install --quiet -c $(CONSTRAINTS) -e '.[space]'
	$(BIN)/python -m pytest -m browser

FUZZ ?=
fuzz: install  ## Load thousands of damaged pictures and model folders; FUZZ="--num_folders 10000 --seed 1" for more
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python -m fuzz $(FUZZ)

benchmark-alignment: install  ## Speed of the scores of images and sentences beside a double loop
	OMP_NUM_THREADS=1 $(BIN)/python examples/benchmarks/benchmark_alignment.py

benchmark-metrics: install  ## Speed of the metrics beside pycocoevalcap's
	$(BIN)/pip install --quiet -c $(CONSTRAINTS) -e '.[java]'
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python examples/benchmarks/benchmark_metrics.py

benchmark-training: install  ## Speed of a training step, and of what feeds it, beside the plain ways
	OMP_NUM_THREADS=1 $(BIN)/python examples/benchmarks/benchmark_training.py

FLICKR8K ?= flickr8k
MOBILENET ?= mobilenet-v2
pretrained: $(VENV)/.train  ## Train the captioner of the package again: FLICKR8K=folder MOBILENET=folder; hours, resumable
	OMP_NUM_THREADS=1 $(BIN)/python examples/train_pretrained.py --dataset_name $(FLICKR8K) \
		--encoder_name_or_path $(MOBILENET) --output_dir outputs/pretrained

card: $(VENV)/.train  ## The model card that hub_card/README.md shows, from the demo
	$(BIN)/cnnrnn card --model_name_or_path $(OUTPUT) --repo_id me/shapes-captioner --license apache-2.0 \
		--output_dir hub_card

quality: install  ## Check style and types
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

style: install  ## Mend style
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

clean:  ## Remove what the commands above have made
	rm -rf $(VENV) .venv-oldest outputs build *.egg-info .pytest_cache .ruff_cache .mypy_cache
