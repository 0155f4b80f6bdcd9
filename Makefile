# Two commands on a fresh machine: `make demo` runs the main job on real data, `make test` passes the tests.
PYTHON ?= python3
VENV := .venv
RUN := runs/ml-100k
TORCH := $(shell grep -m1 "^torch==" release/constraints.txt)
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-fast test-gpu coverage lint docs fuzz mutation packages web web-build web-tools constraints audit serve bench bench-domains clean system keras-tensorflow
EXTRAS ?= train none redis postgresql kafka ann onnx tune privacy checks cloud ray sql delta iceberg texts
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
	@echo "  make serve                                                   the service, and a playground in the browser"
	@echo "  open report.html                                             the proof, with intervals and plots"
	@echo "  $(VENV)/bin/distilrec run --config my.toml                     your own log: see README.md"

serve: $(VENV)/train.stamp
	@test -d $(RUN)/bundle || (echo "there is no bundle yet: run make demo first"; exit 2)
	@echo "the playground is at http://127.0.0.1:8000/"
	$(VENV)/bin/distilrec serve --bundle $(RUN)/bundle --store sqlite:///$(RUN)/service.db

# Two processes; a file stays in one of them, where its servers and runs are shared.
test: $(VENV)/dev.stamp system
	$(VENV)/bin/python -m pytest --numprocesses 2 --dist loadfile

# Under a minute on an idle machine: what needs no server, browser, cluster, other library or slow training.
test-fast: $(VENV)/dev.stamp
	$(VENV)/bin/python -m pytest --numprocesses 2 --dist loadfile \
	  -m "not adapters and not chromium and not gpu and not mariadb and not postgresql and not ray and not redis and not server and not slow"

# The tests that train on CUDA; they are skipped where torch sees no CUDA device.
test-gpu: $(VENV)/dev.stamp
	$(VENV)/bin/python -m pytest -m gpu -rs

# All tests with the share of lines that ran, in subprocesses too; fails below what pyproject.toml asks for.
coverage: $(VENV)/dev.stamp system
	$(VENV)/bin/coverage erase
	$(VENV)/bin/coverage run -m pytest
	$(VENV)/bin/coverage combine --quiet
	$(VENV)/bin/coverage report --skip-covered

lint: $(VENV)/dev.stamp
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache

bench: $(VENV)/bench.stamp
	$(VENV)/bin/python bench/losses.py
	$(VENV)/bin/python bench/quality.py --dataset ml-100k --seeds 3
	$(VENV)/bin/python bench/latency.py --run runs/quality/ml-100k/seed-0
	$(VENV)/bin/python bench/similar.py --run runs/quality/ml-100k/seed-0
	$(VENV)/bin/python bench/quality.py --dataset ml-1m --seeds 3
	$(VENV)/bin/python bench/latency.py --run runs/quality/ml-1m/seed-0
	$(VENV)/bin/python bench/training.py
	$(VENV)/bin/python bench/engine.py
	$(VENV)/bin/python bench/web_speed.py
	$(VENV)/bin/python bench/service.py

# The docs site in site/, strict: a broken link or reference is an error.
docs: $(VENV)/docs.stamp
	$(VENV)/bin/python docs/reference.py
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --quiet

# Coverage-guided fuzzing of configuration, readers, bundle loader and HTTP; inputs that fail are kept in runs/fuzz.
SECONDS ?= 60
fuzz: $(VENV)/dev.stamp
	for target in settings readers bundle http; do \
	  $(VENV)/bin/python fuzz/fuzz.py $$target --seconds $(SECONDS) || exit 1; \
	done

# Mutation tests of metrics, losses and state; kernels run as plain Python. `mutmut results` in runs/mutation names survivors.
mutation: $(VENV)/dev.stamp
	rm -rf runs/mutation && mkdir -p runs/mutation
	git archive HEAD | tar -x -C runs/mutation
	sed -i '/^@\(fold_\)\?kernel$$/{N;/quantised/!s/^@[a-z_]*\n//}' runs/mutation/src/distilrec/engine/kernels.py # only plain functions are mutated
	cd runs/mutation && OMP_NUM_THREADS=1 $(CURDIR)/$(VENV)/bin/mutmut run --max-children 2
	cd runs/mutation && $(CURDIR)/$(VENV)/bin/python $(CURDIR)/release/mutation_score.py

# Sdist and wheel in dist/, the wheel tried in an empty environment for each extra, with the pinned versions; bills of materials.
packages: $(VENV)/dev.stamp
	$(VENV)/bin/python release/packages.py --build --sbom --extras $(EXTRAS)

# A page that recommends by itself, with the student of the demo, for any static host.
web: $(VENV)/train.stamp
	@test -d $(RUN)/bundle || (echo "there is no bundle yet: run make demo first"; exit 2)
	$(VENV)/bin/python web/make_page.py --bundle $(RUN)/bundle --folder $(RUN)/page

# The npm package in web/dist, which is committed, with the tools that web/package-lock.json pins.
web-build:
	cd web && npm ci --ignore-scripts --no-audit --no-fund && npm run build

# The tools alone, for the test that builds web/dist again. Without them a recorded hash of the sources is all that is compared.
web-tools:
	@if ! command -v npm >/dev/null || ! (cd web && npm ci --ignore-scripts --no-audit --no-fund >/dev/null 2>&1); then \
	  echo "no npm, or no registry: web/dist is not built again"; fi

# The newest versions, pinned for every Python from 3.11.
constraints: $(VENV)/dev.stamp
	$(VENV)/bin/uv pip compile pyproject.toml --universal --python-version 3.11 --no-annotate --quiet --upgrade \
	  --extra redis --extra postgresql --extra kafka --extra ann --extra onnx --extra train --extra tune --extra privacy --extra checks --extra cloud --extra ray --extra sql --extra delta --extra iceberg --extra texts \
	  --custom-compile-command 'make constraints' --output-file release/constraints.txt

# Known vulnerabilities of the pinned versions; needs the JSON interface of pypi.org.
audit: $(VENV)/dev.stamp
	$(VENV)/bin/pip-audit --strict --no-deps --disable-pip --requirement release/constraints.txt

# One recipe of examples/ as a user would run it: make recipe-music. SOURCE is the folder of the original files.
recipe-%: $(VENV)/bench.stamp
	$(VENV)/bin/python examples/$*/recipe.py $(if $(SOURCE),--source $(SOURCE))

# All recipes on the data of ../shared/data, students with three seeds (groceries: 25 min for each); then noise, transfer
# and privacy. Hours. Films are a part of `bench`.
bench-domains: $(VENV)/bench.stamp
	for name in complete-journey ta-feng online-retail lastfm lastfm-friends filmtrust news-bing; do \
	  $(VENV)/bin/python bench/quality.py --dataset $$name --seeds 3 || exit 1; \
	done
	$(VENV)/bin/python bench/summary.py --write
	$(VENV)/bin/python bench/noise.py
	$(VENV)/bin/python bench/transfer.py
	$(VENV)/bin/python bench/privacy.py

# What the tests need from the system: Redis and PostgreSQL for shared stores, openssl for their certificates, Chromium for the playground, Node for the web engine,
# PostgreSQL and MariaDB for queries. Where they cannot be
# installed, the tests that need them are skipped and say so.
system:
	@missing=""; command -v redis-server >/dev/null || missing="$$missing redis-server"; \
	command -v openssl >/dev/null || missing="$$missing openssl"; \
	command -v chromium >/dev/null || missing="$$missing chromium"; \
	command -v node >/dev/null || missing="$$missing nodejs"; \
	command -v initdb >/dev/null || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing="$$missing postgresql"; \
	command -v mariadbd >/dev/null || missing="$$missing mariadb-server"; \
	if [ -n "$$missing" ] && command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
	  (DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $$missing || \
	   (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $$missing)) >/dev/null; \
	elif [ -n "$$missing" ]; then echo "not installed, their tests are skipped:$$missing"; fi

# Optional, not part of CI: the Keras adapter with the TensorFlow backend, in an environment of its own (about 2 GB).
keras-tensorflow: $(VENV)/bin/python
	$(PYTHON) -m venv .venv-tensorflow
	.venv-tensorflow/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	.venv-tensorflow/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH) --editable '.[train]' keras tensorflow-cpu
	KERAS_BACKEND=tensorflow .venv-tensorflow/bin/python examples/teachers/keras_model.py --users 60 --epochs 1 --folder runs/keras-tensorflow

clean:
	rm -rf .venv-tensorflow $(VENV) web/node_modules dist build site docs/reference runs report.html .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# The pinned torch first, and named in each later step: a looser wish could pull another build.
$(VENV)/train.stamp: pyproject.toml | $(VENV)/bin/python
	$(PIP) $(TORCH)
	$(PIP) $(TORCH) --editable '.[train]'
	@touch $@

$(VENV)/dev.stamp: pyproject.toml $(VENV)/train.stamp
	$(PIP) $(TORCH) --editable '.[dev]'
	$(PIP) $(TORCH) --editable '.[adapters]'
	$(PIP) --no-deps recbole==1.2.1
	@touch $@

$(VENV)/docs.stamp: pyproject.toml $(VENV)/train.stamp
	$(PIP) $(TORCH) --editable '.[docs]'
	@touch $@

$(VENV)/bench.stamp: pyproject.toml $(VENV)/dev.stamp
	$(PIP) $(TORCH) --editable '.[bench]'
	@touch $@
