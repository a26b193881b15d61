# Two commands on a fresh machine: `make demo` and `make test`. Everything is installed into .venv.
PYTHON      ?= python3
# Another torch build: make venv TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
VENV        := .venv
BIN         := $(VENV)/bin
PIP         := $(BIN)/python -m pip install --disable-pip-version-check -q
DEMO        := runs/demo
# A process a core, each on one thread (tests/conftest.py)
PYTEST      := $(BIN)/pytest -n auto --maxprocesses 8 --dist worksteal

.PHONY: venv demo check test peers clean
venv: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) -c constraints.txt torch==2.13.0
	$(PIP) -c constraints.txt -e '.[dev]'
	@touch $@

demo: venv
	rm -rf $(DEMO)
	$(BIN)/resode train quickstart --out $(DEMO)
	rm -rf $(DEMO)-parabolic
	$(BIN)/resode train quickstart-parabolic --out $(DEMO)-parabolic
	rm -rf $(DEMO)-twist
	$(BIN)/resode train quickstart-twist --out $(DEMO)-twist
	@echo "Open report.html of $(DEMO), $(DEMO)-parabolic and $(DEMO)-twist in a browser."

check: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST) -q -m "not slow"

test: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST)

# Without their dependencies, which would bring another torch
peers: venv
	$(PIP) --no-deps --target .peers torchdyn torchcde torchsde trampoline boltons attrs memcnn momentumnet \
	  pytorch-lightning lightning-utilities torchmetrics
	$(BIN)/python benchmarks/peers.py

clean:
	rm -rf $(VENV) .peers build dist runs
