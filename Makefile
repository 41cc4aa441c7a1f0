# Two commands need nothing but Python 3.11 and the network: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
BENCH_ARGS ?=
PART ?=
# Test processes: a file of tests runs in one of them, so that its fixtures are made once.
JOBS ?= auto
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements/constraints.txt
DATA := data/shapes
RUNS := work_dirs

TEACHER := $(RUNS)/retinanet_r50_shapes
ALONE := $(RUNS)/retinanet_r18_shapes
DISTILLED := $(RUNS)/cskd_retina_r50_distill_r18_shapes
MODEL := $(DISTILLED)/student.onnx

.PHONY: help env demo test reliability lint golden bench gpu clean
.DELETE_ON_ERROR:

help:
	@echo "make env          the environment alone, in $(VENV); the other targets make it where they need it"
	@echo "make demo         from nothing to a distilled, exported and measured detector (about a quarter of an hour on two cores)"
	@echo "make test         the whole test suite"
	@echo "make reliability  the long tests: kills, old versions, other Pythons (over half an hour)"
	@echo "make lint         ruff and mypy"
	@echo "make golden       the distilled step against the published code's values"
	@echo "make bench        what a distilled step costs against what it must cost (some minutes on a quiet machine)"
	@echo "make gpu          tests and benchmarks that need a GPU, by PYTHON as it is; PART=NAME runs one part"
	@echo "make clean        removes generated data and all runs"

env: $(VENV)/.ready

# mmcv-full first: built before torch is there it leaves its compiled operators out (cskd-train brings its own) and needs
# no compiler; with opencv-python-headless there already it asks for no other OpenCV. Its setup.py needs setuptools < 81.
$(VENV)/.ready: requirements/constraints.txt requirements/dev.txt $(wildcard packages/*/pyproject.toml)
	@echo "installing into $(VENV) (about two minutes) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) "setuptools<81" wheel numpy opencv-python-headless
	@$(PIP) --use-pep517 --no-build-isolation mmcv-full
	@$(PIP) $(PIP_ARGS) -r requirements/dev.txt -e packages/cskd-core -e packages/cskd-data -e packages/cskd-train -e "packages/cskd-deploy[ort,export]"
	@touch $@

demo: $(DISTILLED)/detections.png $(DISTILLED)/eval.json $(DISTILLED)/bench.json
	@$(BIN)/python demo/summary.py $(TEACHER) $(ALONE) $(DISTILLED)

# Each file is made once; a run that was interrupted goes on after its last finished epoch.
$(DATA)/shapes.json: | env
	@echo; echo "== 1/6 drawing a data set"
	@$(BIN)/cskd-train data shapes $(DATA) --size 128 128

$(TEACHER)/result.json: | $(DATA)/shapes.json
	@echo; echo "== 2/6 training the teacher, ResNet-50"
	@$(BIN)/cskd-train run configs/demo/retinanet_r50_shapes.py --work-dir $(TEACHER) --resume

$(ALONE)/result.json: | $(DATA)/shapes.json
	@echo; echo "== 3/6 training the student alone, ResNet-18"
	@$(BIN)/cskd-train run configs/demo/retinanet_r18_shapes.py --work-dir $(ALONE) --resume

$(DISTILLED)/result.json: | $(TEACHER)/result.json $(ALONE)/result.json
	@echo; echo "== 4/6 training the same student under the teacher"
	@$(BIN)/cskd-train run configs/demo/cskd_retina_r50_distill_r18_shapes.py --work-dir $(DISTILLED) --resume

$(MODEL): | $(DISTILLED)/result.json
	@echo; echo "== 5/6 exporting the student"
	@$(BIN)/cskd-deploy export --checkpoint $(DISTILLED)/best.pth --format onnx --output $@

$(DISTILLED)/bench.json: | $(MODEL)
	@echo; echo "== 6/6 measuring the exported file"
	@$(BIN)/cskd-deploy bench $(MODEL) --reference $(DISTILLED)/best.pth --images $(DATA)/images --json > $@

$(DISTILLED)/eval.json: | $(DISTILLED)/bench.json
	@$(BIN)/cskd-deploy eval $(MODEL) --ann $(DATA)/annotations/val.json --images $(DATA)/images \
		--reference $(DISTILLED)/best.pth --max-drop 0.2 --json > $@

$(DISTILLED)/detections.png: | $(DISTILLED)/eval.json
	@$(BIN)/cskd-train show $(TEACHER)/best.pth $(ALONE)/best.pth $(DISTILLED)/best.pth \
		--title teacher --title "student alone" --title "student distilled" --out $@
	@echo

test: env
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(PYTEST_ARGS)

reliability: env
	$(BIN)/python -m pytest -m reliability tests $(PYTEST_ARGS)

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: env
	$(BIN)/python benchmarks/step.py $(BENCH_ARGS)

# No environment is made: a GPU machine brings its own torch.
gpu:
	$(PYTHON) benchmarks/gpu.py $(if $(PART),--parts $(PART))

golden: env
	$(BIN)/python tests/golden/check.py tests/golden/golden.json

clean:
	rm -rf $(DATA) $(RUNS)
