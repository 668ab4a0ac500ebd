"""What pyproject.toml can't say: all packages that are found, and configs/ as the package nf_zoo.configs of a wheel."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=['nf_zoo', 'nf_zoo.*']), 'nf_zoo.configs'],
    package_dir={'nf_zoo.configs': 'configs'},
)
