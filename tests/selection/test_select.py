"""The arguments of `Select`, accepted and refused."""

import pytest
from torch import nn

from lightning_reg import Select
from lightning_reg.selection import as_select


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"include": []}, ValueError, "`include` must hold at least one glob, got none. Leave it out"),
        ({"include": 5}, TypeError, "`include` must be a glob or a list of globs over parameter names, got 5"),
        ({"include": b"head.*"}, TypeError, "`include` must be a glob or a list of globs.*got b'head"),
        ({"include": ["a", 1]}, TypeError, r"`include` must be a glob or a list of globs.*got \['a', 1\]"),
        ({"include": [["a"]]}, TypeError, r"`include` must be a glob or a list of globs.*got \[\['a'\]\]"),
        ({"exclude": None}, TypeError, "`exclude` must be a glob or a list of globs.*got None"),
        ({"include": b""}, TypeError, "`include` must be a glob or a list of globs.*got b'' of type bytes"),
        ({"include": {"head.*"}}, TypeError, r"`include` must be a glob or a list of globs.*got \{'head.*of type set"),
        ({"include": {"a": 1}}, TypeError, r"`include` must be a glob or a list of globs.*got \{'a': 1\} of type dict"),
        ({"include": True}, TypeError, "`include` must be a glob or a list of globs.*got True of type bool"),
        ({"exclude": b""}, TypeError, "`exclude` must be a glob or a list of globs.*got b'' of type bytes"),
        ({"exclude": bytearray()}, TypeError, "`exclude` must be a glob or a list of globs.*of type bytearray"),
        ({"exclude": range(0)}, TypeError, "`exclude` must be a glob or a list of globs.*of type range"),
        ({"exclude": {}}, TypeError, r"`exclude` must be a glob or a list of globs.*got \{\} of type dict"),
        ({"exclude": set()}, TypeError, r"`exclude` must be a glob or a list of globs.*got set\(\) of type set"),
        ({"module_types": None}, TypeError, "`module_types` must hold subclasses of torch.nn.Module, got None"),
        ({"module_types": "Linear"}, TypeError, "`module_types` must hold subclasses.*got 'Linear'"),
        ({"module_types": ""}, TypeError, "`module_types` must hold subclasses.*got '' of type str"),
        ({"module_types": b""}, TypeError, "`module_types` must hold subclasses.*got b'' of type bytes"),
        ({"module_types": {}}, TypeError, r"`module_types` must hold subclasses.*got \{\} of type dict"),
        ({"module_types": {nn.ReLU}}, TypeError, r"`module_types` must hold subclasses.*of type set"),
        ({"module_types": False}, TypeError, "`module_types` must hold subclasses.*got False of type bool"),
        ({"module_types": [list[int]]}, TypeError, r"`module_types` must hold subclasses.*got \[list\[int\]\]"),
        ({"module_types": [nn.ReLU()]}, TypeError, r"`module_types` must hold subclasses.*got \[ReLU\(\)\]"),
        ({"module_types": [int]}, TypeError, r"`module_types` must hold subclasses.*got \[<class 'int'>\]"),
        ({"min_ndim": -1}, ValueError, "`min_ndim` must be an int >= 0, got -1"),
        ({"min_ndim": True}, TypeError, "`min_ndim` must be an int >= 0, got True"),
        ({"min_ndim": "2"}, TypeError, "`min_ndim` must be an int >= 0, got '2' of type str"),
        ({"min_ndim": 2.0}, TypeError, r"`min_ndim` must be an int >= 0, got 2\.0"),
    ],
)
def test_a_bad_argument_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        Select(**arguments)


def test_an_argument_that_is_not_a_selection_is_refused():
    with pytest.raises(TypeError, match="`include` must be a glob or a list of globs"):
        as_select(nn.Linear(2, 2))


def test_selections_are_equal_if_they_choose_the_same_way():
    assert Select("a.*", module_types=nn.Linear) == Select(["a.*"], module_types=[nn.Linear])
    assert len({Select("a.*"), Select(["a.*"]), Select("a.*", min_ndim=1)}) == 2


@pytest.mark.parametrize("empty", [[], ()])
def test_an_empty_list_is_not_a_selection_of_everything(empty):
    assert Select(exclude=empty, module_types=empty) == Select()
