# Two commands: `make report` and `make test`.  Each makes its environment first (a minute or two, once).
#   make report PROFILE=full WEIGHTS=path    the study, from result files; TRAIN_MISSING=1 trains rows that have none,
#                                            PROBE=1 probes the features of the checkpoints again, EXPLAIN=1
#                                            computes what evaluation/evaluation.ipynb shows of them

PROFILE ?= quick
PYTHON ?= python3
BIN = .venv/bin

# Threads that wait for work sleep instead of spinning: beside another busy process spinning costs up to 39 times.
export OMP_WAIT_POLICY = PASSIVE
export PROFILE DATA WEIGHTS TRAIN_MISSING PROBE EXPLAIN

.PHONY: report test data lint bench
report: .venv/installed
	$(BIN)/python -m evaluation.report

# A process a core with one thread each: small tests gain nothing from threads, and the notebooks run side by side.
test: .venv/installed lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

data: .venv/installed
	$(BIN)/python -m data.prepare 15scene $(if $(SOURCE),--source $(SOURCE))

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Twenty minutes on two cores that do nothing else; WEIGHTS=path for trained features.  One table each, then the chart.
BENCHMARKS = training_step evaluation data frozen_classifier scorecam inversion store_size profile chart
bench: .venv/installed
	set -e; for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name; done

# Without --no-compile pip compiles all modules, for most of a minute; Python compiles those that are imported.
.venv/installed: requirements.txt requirements-bench.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11.4 or newer is needed" if sys.version_info < (3, 11, 4) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile --editable . --requirement requirements-bench.txt
	touch $@
