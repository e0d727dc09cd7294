"""A set of patches stands while it is held, and goes in reverse order."""

from __future__ import annotations

import gc
import types

from steadygrad.torch.internals.patches import PatchSet


class Holder:
    pass


def test_patches_stand_until_the_last_holder_is_gone() -> None:
    library = types.SimpleNamespace(name="theirs")
    told: list[str] = []
    patches = PatchSet(lambda p: p.replace(library, "name", "ours"), lambda: told.append("undone"))
    one, two = Holder(), Holder()
    patches.hold(one)
    patches.hold(two)
    patches.hold(one)
    assert (library.name, len(patches.holders)) == ("ours", 2)
    patches.release(one)
    assert (library.name, told) == ("ours", [])
    del two
    gc.collect()
    assert (library.name, told) == ("theirs", ["undone"])
    patches.release(one)
    assert told == ["undone"]


def test_undoing_goes_in_reverse_order() -> None:
    library = types.SimpleNamespace(name="theirs")

    def make(patches: PatchSet) -> None:
        patches.replace(library, "name", "first")
        patches.replace(library, "name", "second")

    patches, holder = PatchSet(make), Holder()
    patches.hold(holder)
    patches.release(holder)
    assert library.name == "theirs"


def test_a_patch_over_ours_is_left_and_taken_out_once_it_has_gone() -> None:
    library = types.SimpleNamespace(name="theirs")
    patches, holder = PatchSet(lambda p: p.replace(library, "name", "ours")), Holder()
    patches.hold(holder)
    library.name = "somebody's"
    patches.release(holder)
    assert library.name == "somebody's"
    library.name = "ours"
    patches.release(holder)
    assert library.name == "theirs"


def test_a_holder_that_is_collected_while_the_next_one_comes_takes_nothing_with_it() -> None:
    library = types.SimpleNamespace(name="theirs")

    class Holder(set[int]):
        __hash__ = object.__hash__

    def make(patches: PatchSet) -> None:
        patches.replace(library, "name", "ours")
        patches.release(earlier)  # as the garbage collector may at any line

    patches, earlier, following = PatchSet(make), Holder(), Holder()
    patches.hold(following)
    assert library.name == "ours"
    patches.release(following)
    assert library.name == "theirs"
