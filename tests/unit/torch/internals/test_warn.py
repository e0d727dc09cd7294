"""A warning is text of the user's own line, whatever a tensor is called."""

import pytest

from steadygrad.torch.internals.warn import warn_user


def test_a_name_in_a_warning_is_shown_and_not_obeyed():
    with pytest.warns(UserWarning, match="^the tensor \ufffd\\[2J is gone$") as caught:
        warn_user("the tensor \x1b[2J is gone", UserWarning)
    assert caught[0].filename == __file__
