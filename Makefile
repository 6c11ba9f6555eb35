# A fresh machine needs Python 3.11+, make and git; the rest is fetched here, once.

export PATH := $(CURDIR)/.uv/bin:$(PATH)
UV = $(if $(shell command -v uv),,.uv/bin/uv)
RESULTS ?= results
LEAKS ?= refuse

.PHONY: help up demo analyze train evaluate bench test faults check clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*  ## /  make \1	/p' Makefile | expand -t 20

up: .venv/.ready  ## watch inbox/, write to results/, show it all in Prefect's page, until Ctrl-C
	@exec .venv/bin/ferflow up

demo: .venv/.ready  ## make a short clip of two people, analyse it, show what comes out
	@.venv/bin/ferflow demo

analyze: .venv/.ready  ## analyse your own: make analyze VIDEO=file-or-folder [RESULTS=results]
	@test -n "$$VIDEO" || { echo 'Name a video or a folder of videos: make analyze VIDEO=holiday.mp4'; exit 2; }
	@.venv/bin/ferflow analyze "$$VIDEO" --results "$(RESULTS)"

train: .venv/.ready  ## train an emotion model: make train DATA=folder-with-train-and-test [LEAKS=leave_out]
	@test -n "$$DATA" || { echo 'Name a folder of labelled faces: make train DATA=fer2013'; exit 2; }
	@.venv/bin/ferflow train "$$DATA" --leaks "$(LEAKS)"

evaluate: DATA ?= ../shared/data/fer2013.tar.gz
evaluate: VIDEOS ?= ../shared/videos
evaluate: MODEL ?= default
evaluate: .venv/.ready  ## measure every figure of the model card: make evaluate [MODEL=name] [DATA=...] [CARD=write]
	@.venv/bin/python -m benchmarks.evaluate "$(DATA)" --videos "$(VIDEOS)" --model "$(MODEL)" $(if $(CARD),--write-card)

bench: VIDEOS ?= ../shared/videos
bench: .venv/.ready  ## measure what it costs, beside other packages: make bench [QUICK=yes] [VIDEOS=folder] [ONLY="a b"]
	@.venv/bin/python -m benchmarks.speed "$(VIDEOS)" $(if $(QUICK),--quick) $(if $(ONLY),--only $(ONLY))

test: .venv/.ready  ## run the tests
	@.venv/bin/pytest --quiet -n 2 --dist loadfile --no-loadscope-reorder

faults: .venv/.ready  ## do to the pipeline what the world does, and count what was lost (17 to 26 minutes)
	@FAULTS=all .venv/bin/pytest --quiet -m fault

check: .venv/.ready  ## lint, format and types
	@.venv/bin/ruff check --quiet
	@.venv/bin/ruff format --check --quiet || { .venv/bin/ruff format --check; exit 1; }
	@.venv/bin/mypy

clean:  ## remove what make fetched and made; results stay
	rm -rf .venv .uv .mypy_cache .pytest_cache .ruff_cache .hypothesis demo

# Packages exactly as locked, and the face detector's weights.
.venv/.ready: pyproject.toml uv.lock | $(UV)
	@test "$$(uname)" != Linux || for library in libEGL.so.1 libGLESv2.so.2; do \
	    python3 -c "import ctypes; ctypes.CDLL('$$library')" 2>/dev/null || { \
	    echo "MediaPipe needs $$library: run 'sudo apt-get install libegl1 libgles2'."; exit 1; }; done
	@echo 'Installing the packages that uv.lock names (2 GB, once) ...'
	@uv sync --locked --quiet
	@echo 'Fetching the weights of the face detector (36 MB, once) ...'
	@.venv/bin/python -m models.detector_weights >/dev/null
	@touch $@

# uv, in a folder of its own: many systems refuse to install into their Python.
.uv/bin/uv:
	@echo 'Installing uv into .uv ...'
	@python3 -m venv .uv >/dev/null 2>&1 || { rm -rf .uv; \
	    echo "Python cannot make virtual environments: run 'sudo apt-get install python3-venv'."; exit 1; }
	@.uv/bin/pip install --quiet --disable-pip-version-check uv
