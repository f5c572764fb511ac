# `make demo`, `make test` and `make fast` set up .venv by themselves. PYTHON names the interpreter it is made with.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test fast coverage mutation outside lint format

demo: .venv/ready
	$(BIN)/python tools/demo.py

test: .venv/ready lint
	$(BIN)/python -m pytest -n 2

# Without the tests marked as slow, which start whole runs or processes, or take many seconds.
fast: .venv/ready lint
	$(BIN)/python -m pytest -n 2 -m 'not slow'

# What the fast tests run of the package, file by file. Processes that tests start are not seen.
coverage: .venv/ready
	$(BIN)/python -m pytest -n 2 -m 'not slow' --cov mmhcg --cov-report term:skip-covered

# What of deliberate faults in the network, the converter and the swap the fast tests let pass: it takes hours.
mutation: .venv/ready
	$(BIN)/python -m pip install --disable-pip-version-check -q 'mutmut>=3.8'
	$(BIN)/python -m mutmut run
	$(BIN)/python -m mutmut results

# The fast tests on a wheel that is built from the source archive, where there is no checkout of the package.
outside: .venv/ready
	rm -rf build/outside
	mkdir -p build/outside/tree
	git archive HEAD | tar -x -C build/outside
	cd build/outside && $(abspath $(BIN))/python setup.py -q sdist
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation --target build/outside/site build/outside/dist/*.tar.gz
	cd build/outside && mv tests configs tools benchmarks docs README.md pyproject.toml setup.py model-index.yml tree
	cd build/outside/tree && PYTHONPATH=$(abspath build/outside/site) $(abspath $(BIN))/python -m pytest -n 2 -m 'not slow'

lint: .venv/ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: .venv/ready
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

.venv/ready: setup.py
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 9) or sys.exit("mmhcg needs Python 3.9 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -e '.[standalone,pretrain,attack,export,test]'
	touch $@

# An environment of docs/compatibility.md, for instance: make compat-oldest PYTHON=python3.9
compat-%: tests/environments/%.txt
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --disable-pip-version-check --progress-bar off -r $<
	if [ -f tests/environments/$*.build.txt ]; then MMCV_WITH_OPS=1 .venv-$*/bin/python -m pip install \
		--no-build-isolation -r tests/environments/$*.build.txt; fi
	.venv-$*/bin/python -m mmhcg.doctor
	.venv-$*/bin/python -m pytest -n 2 -m 'not slow'
