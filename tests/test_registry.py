from abc import ABC, abstractmethod

import pytest

from resode.errors import InputError, nearest
from resode.registry import Entry, Registry


def make(width: int, depth: int = 3) -> tuple[int, int]:
    return width, depth


@pytest.fixture
def shapes() -> Registry[tuple[int, int]]:
    registry: Registry[tuple[int, int]] = Registry("shape", "shapes")
    registry.register("square")(make)
    registry.register_family(r"square\d+", lambda name: Entry(name, lambda: (int(name[6:]), 0)))
    return registry


def test_a_name_builds_its_factory(shapes):
    assert shapes.build("square", width=2) == (2, 3)
    assert shapes.build("square5") == (5, 0)
    assert shapes.names() == ("square",)


def test_a_name_given_twice_raises(shapes):
    with pytest.raises(InputError, match="'square' is registered already"):
        shapes.register("square")(make)


def test_a_class_that_lacks_methods_is_refused_when_it_is_registered():
    class Half(ABC):
        @abstractmethod
        def build(self) -> None: ...

    registry: Registry[Half] = Registry("half", "halves")
    with pytest.raises(InputError, match="half 'one': its class does not define build"):
        registry.register("one")(Half)


def test_an_unknown_name_names_the_nearest(shapes):
    with pytest.raises(InputError, match="unknown shape 'sqare'; did you mean 'square'"):
        shapes.build("sqare")


def test_unknown_options_are_all_reported(shapes):
    with pytest.raises(InputError) as error:
        shapes.build("square", widht=1, dept=2)
    assert len(error.value.messages) == 2
    assert "did you mean 'width'" in error.value.messages[0]
    assert "did you mean 'depth'" in error.value.messages[1]


def test_of_equally_near_names_the_one_that_begins_alike_is_meant():
    names = ("he2016/resnet32", "he2016/resnet20", "he2016/resnet110")
    assert nearest("he2016/resnet2O", names) == "; did you mean 'he2016/resnet20'?"
    assert nearest("he2016/resnet2O", iter(names)) == "; did you mean 'he2016/resnet20'?"
    assert nearest("zzz", names) == nearest("x", ()) == ""
