# python3 with venv and pip, and make: nothing else is needed. An existing environment can be named: make test VENV=path
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.dho_nb-installed

.PHONY: install demo test docs bench gpu million wheels readme lab clean

install: $(STAMP)

# nbdev-export touches pyproject.toml: what was installed is compared by content
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || python3 -m venv $(VENV)
	cat pyproject.toml constraints.txt | cmp -s - $(STAMP) || \
	  $(BIN)/python -m pip install -q --disable-pip-version-check -e ".[dev]" -c constraints.txt
	cat pyproject.toml constraints.txt > $(STAMP)

demo: $(STAMP)        ## the paper's comparison on embedded data, about two minutes on two cores
	$(BIN)/dho demo

test: $(STAMP)        ## every notebook's cells, then pytest
	temporary=$$(mktemp -d) && trap 'rm -rf $$temporary' EXIT && TMPDIR=$$temporary OMP_NUM_THREADS=1 $(BIN)/nbdev-test --n-workers 2
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

docs: $(STAMP)        ## the documentation as a site, in _site/; nothing is executed
	$(BIN)/python docs/build.py

bench: $(STAMP)       ## speed and memory, as ratios within one run; about a quarter of an hour on two cores
	mkdir -p runs/bench
	for name in store surface online_step sweep; do \
	  $(BIN)/papermill nbs/benchmarks/$$name.ipynb runs/bench/$$name.ipynb -k python3 --no-progress-bar -p out $(CURDIR)/runs/bench/$$name.json || exit 1; \
	done

gpu:                  ## every GPU check and benchmark, within 8 minutes, nothing is fetched; without a GPU at toy size
	$(if $(wildcard $(BIN)/python),$(BIN)/python,python3) nbs/benchmarks/gpu.py $(GPU)

million: $(STAMP)     ## synthetic pools of up to a million images from shards to predictions: seconds and memory by stage; about 40 minutes, 32 GB of disk
	OMP_NUM_THREADS=1 $(BIN)/python nbs/benchmarks/million.py $(MILLION)

wheels:               ## packages for make gpu on a machine without internet (Python 3.12), into wheels/
	$(if $(wildcard $(BIN)/python),$(BIN)/python,python3) nbs/benchmarks/gpu.py --collect wheels $(if $(PACKAGES),--packages $(PACKAGES))

readme: $(STAMP)      ## README.md, CONTRIBUTING.md and llms.txt from the notebooks
	$(BIN)/python tests/readme.py

lab: $(STAMP)         ## JupyterLab, on a page with links to all notebooks
	$(BIN)/jupyter lab nbs/index.ipynb

clean:                ## what a build leaves; runs and environments stay
	rm -rf build dist *.egg-info _proc _docs _site
