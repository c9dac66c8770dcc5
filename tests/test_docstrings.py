"""Every example in a docstring and the layer examples of the README and the site run and give what they say."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import numpy as np
import pytest

import caps_tf

MODULES = [module.name for module in pkgutil.walk_packages(caps_tf.__path__, "caps_tf.")]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_are_right(name):
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs={"np": np}, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


@pytest.mark.parametrize("page", ["README.md", "docs/guide/layers.md"])
def test_the_layer_example_of_a_page_has_the_shapes_it_claims(page):
    text = (Path(__file__).parent.parent / page).read_text()
    code = re.search(r"```python\n(import keras\n.*?)```", text, re.S).group(1)
    namespace = {}
    for line in code.splitlines():
        exec(line, namespace)
        target, _, comment = line.partition("#")
        shapes = [
            tuple(None if n == "b" else int(n) for n in shape.split(", "))
            for shape in re.findall(r"\[([^\]]+)\]", comment)
        ]
        if shapes:
            names = [name.strip() for name in target.split("=")[0].split(",")]
            values = [namespace[name] for name in names]
            values = list(values[0]) if isinstance(values[0], (list, tuple)) else values
            assert [tuple(value.shape) for value in values] == shapes, line
    assert namespace["model"].output_shape == (None, 10)
