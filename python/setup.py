"""Compiles the extension against the library that `make lib` has staged in src/transfer_engine, and packs both with `te`."""
import os
import shutil
from pathlib import Path

from setuptools import Extension, setup  # first: it brings distutils
from wheel.bdist_wheel import bdist_wheel

from distutils.command.build_scripts import build_scripts  # isort: skip

HERE = Path(__file__).parent


class Scripts(build_scripts):
    """`te` is a program of the system, not a script: it is copied as it is."""

    def run(self):
        self.mkpath(self.build_dir)
        for script in self.scripts:
            target = Path(self.build_dir) / Path(script).name
            shutil.copyfile(script, target)
            target.chmod(0o755)

    def copy_scripts(self):
        raise AssertionError("not used")


class Wheel(bdist_wheel):
    """One wheel for every Python from 3.11 on, on systems whose C library is as new as this one's."""

    def get_tag(self):
        return "cp311", "abi3", os.environ.get("WHEEL_PLATFORM", super().get_tag()[2])


setup(
    version=os.environ["VERSION"],
    scripts=["build-native/te"],
    cmdclass={"build_scripts": Scripts, "bdist_wheel": Wheel},
    ext_modules=[
        Extension(
            "transfer_engine._native",
            sources=sorted(str(path.relative_to(HERE)) for path in (HERE / "native").glob("*.c")),
            depends=["native/native.h"],
            include_dirs=["build-native"],
            library_dirs=["src/transfer_engine"],
            define_macros=[("Py_LIMITED_API", "0x030B0000")],
            extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror"],
            extra_link_args=["-s", "-l:libtransferengine.so.0", "-Wl,-rpath,$ORIGIN"],
            py_limited_api=True,
        )
    ],
)
