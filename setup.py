"""Installs tfps: `pip install -c constraints.txt -e '.[test]'`."""

from setuptools import find_packages, setup

setup(
    name="tfps",
    version="0.1.0",
    description="Parameter-server training for Keras 3 on stock TensorFlow",
    packages=find_packages(include=["tfps", "tfps.*", "launch", "launch.*", "models", "models.*"]),
    entry_points={"console_scripts": ["tfps-launch = launch.__main__:run"]},
    package_data={"tfps": ["py.typed"]},
    python_requires=">=3.11",
    install_requires=[
        "tensorflow==2.21.*",
        "keras>=3.15,<4",
        "tensorflow-text==2.21.*",
        "absl-py",
        "tensorboard",
    ],
    extras_require={
        "cuda": ["tensorflow[and-cuda]==2.21.*"],
        "compare": ["gensim", "matplotlib", "scikit-learn", "tf-keras==2.21.*"],
        "docs": ["mermaidx", "mkdocs-material==9.*", "mkdocstrings[python]"],
        "plan": ["matplotlib"],
        "sound": ["soundfile"],
        "tables": ["pyarrow"],
        "test": [
            "hypothesis",
            "jax",
            "kubernetes-validate",
            "mypy",
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "ruff",
            "scipy",
            "soundfile",
            "tf-keras==2.21.*",
        ],
    },
)
