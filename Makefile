# Two commands on a fresh machine: `make demo` runs the main job on real data, `make test` passes the tests.
PYTHON ?= python3
VENV := .venv
RUN := runs/ml-100k
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test lint bench clean
.DELETE_ON_ERROR:

demo: $(VENV)/train.stamp
	$(VENV)/bin/distilrec run --dataset ml-100k --run $(RUN)
	@cp $(RUN)/report.html report.html
	@echo
	@echo "Recommendations for user 123 (score, title):"
	@$(VENV)/bin/python recommend.py --user_id 123
	@echo
	@echo "What to try next:"
	@echo "  python recommend.py --user_id 123 --item_ids 456,789,101     scores of these items, best first"
	@echo "  python recommend.py --user_id 7 --k 5 --json                 another user, as JSON"
	@echo "  open report.html                                             the proof, with intervals and plots"
	@echo "  $(VENV)/bin/distilrec run --config my.toml                     your own log: see README.md"

test: $(VENV)/dev.stamp
	$(VENV)/bin/python -m pytest

lint: $(VENV)/dev.stamp
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(VENV)/bench.stamp
	$(VENV)/bin/python bench/quality.py
	$(VENV)/bin/python bench/latency.py --run runs/quality/seed-0

clean:
	rm -rf $(VENV) runs report.html .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch exactly first: a looser wish of another package could pull a larger build.
$(VENV)/train.stamp: pyproject.toml | $(VENV)/bin/python
	$(PIP) torch==2.13.0
	$(PIP) --editable '.[train]'
	@touch $@

$(VENV)/dev.stamp: pyproject.toml $(VENV)/train.stamp
	$(PIP) --editable '.[dev]'
	@touch $@

$(VENV)/bench.stamp: pyproject.toml $(VENV)/dev.stamp
	$(PIP) --editable '.[bench]'
	@touch $@
