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
	swift build -c release --product transferengine
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
wheel: lib
	swift build -c release --product te --static-swift-stdlib --scratch-path .build/static
	VERSION=$(VERSION) python/build-wheel $(PYTHON)

test-python: wheel
	python/run-tests $(PYTHON) $(ARGS)

bench-python: wheel
	Benchmarks/python/run $(PYTHON) $(ARGS)
