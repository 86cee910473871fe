"""Builds this package with nothing from anywhere: PEP 517."""

import pathlib
import zipfile


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    name, info = "lib-0.7-py3-none-any.whl", "lib-0.7.dist-info"
    with zipfile.ZipFile(pathlib.Path(wheel_directory, name), "w") as wheel:
        wheel.write("lib.py")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: lib\nVersion: 0.7\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return name
