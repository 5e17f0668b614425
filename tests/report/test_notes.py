import dataclasses
from collections.abc import Callable
from pathlib import Path

from leanfleet.report import group, read, summarise
from leanfleet.report.notes import notes

Make = Callable[..., Path]


def noted(*folders: Path) -> list[str]:
    return summarise(group(read(folders)))["notes"]


def test_only_federated_runs_have_a_and_b(make: Make) -> None:
    a_and_b = (
        "A: norms use the test batch's own statistics; B: those of training images, as exported networks do"
    )
    assert a_and_b in noted(make())
    assert a_and_b in noted(make(), make("adasplit"))
    assert a_and_b not in noted(make("adasplit"))


def test_virtual_times_of_other_families_are_no_silent_comparison(make: Make) -> None:
    assert any("virtual time without links" in note for note in noted(make(), make("adasplit")))
    assert not any("virtual time" in note for note in noted(make("adasplit"), make("sparse-push")))


def test_it_is_said_what_a_split_accuracy_is(make: Make) -> None:
    said = "adasplit, sl-basic: accuracy is the mean over clients, each on test data like its own"
    assert said in noted(make(), make("adasplit"), make("sl-basic"))
    assert not any("mean over clients" in note for note in noted(make()))


def test_what_the_data_say_of_themselves_is_said_once(make: Make) -> None:
    letters = {"data_note": "letters stand in for notMNIST"}
    same = [make("adasplit", seed, facts=letters) for seed in (0, 1)]
    assert noted(*same).count("data: letters stand in for notMNIST") == 1
    drawn = [
        make("sl-basic", seed, facts={"data_note": f"client 0 holds {pair}"})
        for seed, pair in enumerate(("cats, dogs", "frogs, ships", "cats, dogs"))
    ]
    assert "data: client 0 holds cats, dogs (1 other choices with other seeds)" in noted(*drawn)


def test_other_data_are_no_silent_comparison(make: Make) -> None:
    shards = '[data]\nsource = "digits"\npartition = "shards"\n'
    found = noted(
        make(extra='[data]\nsource = "digits"\npartition = "iid"\n'), make("adasplit", extra=shards)
    )
    assert "not all on the same data: digits, iid; digits, shards" in found
    assert not any(
        "same data" in note for note in noted(make("sl-basic", extra=shards), make("splitfed", extra=shards))
    )


def test_what_was_left_out_has_the_name_it_has_in_its_family(make: Make) -> None:
    found = noted(make("sl-basic", rounds=2, facts={"rejected": ["client 3: not finite"]}))
    assert "sl-basic-s0: activations left out: 2, the first in round 1 (client 3: not finite)" in found


def test_gossip_says_what_its_accuracy_is_and_what_the_run_had_to_say(make: Make) -> None:
    (one,) = group(read([make("sparse-push")]))
    said = "sparse-push: eta is large"
    record = dataclasses.replace(one.records[0], totals={**one.records[0].totals, "notes": [said]})
    found = notes([dataclasses.replace(one, records=(record, record))])
    assert any(note.startswith("sparse-push: accuracy is the mean over nodes") for note in found)
    assert found.count(said) == 1
