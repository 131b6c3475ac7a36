"""All metadata of the package; pyproject.toml holds the tools' settings only."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = re.search(r'^__version__ = "(.+)"$', (here / "torch_augcond/__init__.py").read_text("utf-8"), re.MULTILINE)

setup(
    name="torch-augcond",
    version=version[1],
    description="Labelled synthetic training images from augmentation-conditioned diffusion, as a torch Dataset",
    long_description=(here / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["pytorch", "synthetic data", "data augmentation", "diffusion", "few-shot", "long-tail"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    python_requires=">=3.11",
    packages=find_packages(include=["torch_augcond", "torch_augcond.*"]),
    package_data={"torch_augcond": ["checkpoints/**/*"]},
    include_package_data=False,
    install_requires=[
        "torch>=2.10",
        "torchvision>=0.25",
        "diffusers>=0.38",
        "transformers>=5",
        "safetensors>=0.8",
        "huggingface_hub>=1",
        "Pillow>=12.3",
        "numpy>=2",
        "tqdm>=4.66",
    ],
    extras_require={
        "demo": ["mlxtend>=0.23", "matplotlib>=3.9"],
        "test": [
            "pytest>=8.4",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.8",
            "hypothesis>=6.100",
            "scipy>=1.14",
            "setuptools>=77",
            "ruff==0.17.6",
        ],
        "benchmarks": ["matplotlib>=3.9", "mlxtend>=0.23", "scipy>=1.14"],
    },
    entry_points={"console_scripts": ["torch-augcond = torch_augcond.__main__:main"]},
)
