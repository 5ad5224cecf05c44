# `make report` and `make test` make their environment first (two minutes, once).
#   make report                                the quick profile: no data, no download, no number that means anything
#   make report DATA=FOLDER PROFILE=full       four experiments on images of your own, [<split>/]<class>/<image>
#   make report PROFILE=full [WEIGHTS=FILE]    the study, from result files; COMPUTE=1 computes what is missing

PROFILE ?= quick
PYTHON ?= python3
BIN = .venv/bin
PARALLEL = --numprocesses auto --dist worksteal

# Threads that wait for work sleep instead of spinning: beside another busy process, spinning is up to 39 times slower.
export OMP_WAIT_POLICY = PASSIVE
# pip leaves modules uncompiled, see below; a process that may not keep what it compiles takes twenty seconds to start.
unexport PYTHONDONTWRITEBYTECODE
export PROFILE DATA WEIGHTS RESNET18_WEIGHTS COMPUTE SKIP_BAD_IMAGES SCENES_ROOT

.PHONY: install report test slow pages data lint bench
install: .venv/installed

report: .venv/installed
	$(BIN)/python -m evaluation.pages.report

# One process per core with one thread each: tiny networks gain nothing from threads.
test: .venv/installed lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" $(PARALLEL)

# Kills, many processes, fuzzing, mutations, soak, every shell line of the README.
slow: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow $(PARALLEL)

# Every page that is made of result files.
pages: .venv/installed
	$(BIN)/python -m evaluation.publish --cards
	$(BIN)/python -m evaluation.pages.tables
	$(BIN)/python -m evaluation.pages.claims
	$(BIN)/python -m evaluation.pages.reproduction
	PROFILE=full $(BIN)/python -m evaluation.pages.front_page

data: .venv/installed
	$(BIN)/python -m data.prepare 15scene $(if $(SOURCE),--source $(SOURCE))

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Twenty minutes on two cores that do nothing else; WEIGHTS=FILE for trained features.  One table each, then the chart.
BENCHMARKS = training_step evaluation augmentation data frozen_classifier scorecam inversion image_cache_size profile chart
bench: .venv/installed
	set -e; for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name; done

# Without --no-compile pip compiles every module, which takes most of a minute; Python compiles those that are imported.
.venv/installed: requirements.txt requirements-dev.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11.4 or newer is needed" if sys.version_info < (3, 11, 4) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile --editable . --requirement requirements-dev.txt
	touch $@
