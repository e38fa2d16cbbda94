from __future__ import annotations

import dataclasses

import pytest
from client_counterpart import flow, match_score
from google.protobuf.wrappers_pb2 import Int32Value
from hypothesis import given
from hypothesis import strategies as st

import matchflow
from matchflow import ImageRef, replies
from matchflow.v1 import search_pb2, types_pb2

IDS = st.text(st.characters(codec="utf-8", exclude_characters="/"), min_size=1)


@given(gallery=IDS, image_id=IDS)
def test_an_image_name_reads_back(gallery: str, image_id: str) -> None:
    reference = ImageRef(gallery, image_id)
    assert ImageRef.parse(reference.name) == reference


def test_an_image_name_is_that_of_the_contract() -> None:
    assert ImageRef("demo", "cat").name == "galleries/demo/images/cat"


@pytest.mark.parametrize(
    "name", ["", "cat", "galleries/demo", "galleries//images/cat", "galleries/demo/images/", "demo/images/cat"]
)
def test_another_text_is_no_image_name(name: str) -> None:
    with pytest.raises(ValueError, match="expected galleries/GALLERY/images/IMAGE"):
        ImageRef.parse(name)


def test_a_grid_has_rows_times_columns_cells() -> None:
    assert matchflow.CellGrid(rows=8, columns=4).size == 32


def comparison(score: types_pb2.MatchScore) -> matchflow.Comparison:
    return replies.comparison(search_pb2.CompareResponse(match=score))


def test_an_explanation_that_adds_up_is_verified() -> None:
    pair = comparison(match_score())
    assert pair.verify()
    assert pair.additivity_gap == pytest.approx(0, abs=1e-7)


def test_a_wrong_residual_is_found() -> None:
    pair = comparison(match_score(residual=0.2))
    assert pair.additivity_gap == pytest.approx(0.1)
    assert not pair.verify()
    assert pair.verify(tolerance=0.11)


def test_a_contribution_that_is_not_mass_times_similarity_is_found() -> None:
    score = match_score()
    score.flows[0].mass += 0.1
    assert not comparison(score).verify()


def test_distance_counts_in_a_contribution() -> None:
    score = types_pb2.MatchScore(structural_score=0.3, flows=[flow(0, 3, 0.5, 0.8, 0.2)])
    pair = comparison(score)
    assert pair.flows[0].penalty == pytest.approx(0.2)
    assert pair.verify()
    score.flows[0].penalty = 0.0
    assert not comparison(score).verify()


def test_a_pair_that_was_not_re_ranked_has_nothing_to_add_up() -> None:
    pair = comparison(types_pb2.MatchScore(coarse_score=0.5, score=0.5))
    assert pair.structural_score is None
    assert pair.certificate is None
    assert pair.additivity_gap == 0
    assert pair.verify()


@given(
    masses=st.lists(st.floats(0, 1, width=32), max_size=64),
    similarity=st.floats(-1, 1, width=32),
)
def test_whatever_adds_up_before_the_wire_adds_up_after_it(masses: list[float], similarity: float) -> None:
    whole = sum(masses) or 1.0
    flows = [flow(0, 0, mass / whole, similarity) for mass in masses]
    structural = sum(mass / whole * similarity for mass in masses)
    score = types_pb2.MatchScore(structural_score=structural, flows=flows[::2])
    score.residual = structural - sum(f.contribution for f in flows[::2])
    assert comparison(score).verify()


def test_values_are_frozen() -> None:
    grid = matchflow.CellGrid(rows=1, columns=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        grid.rows = 2  # type: ignore[misc]


def test_all_public_names_exist() -> None:
    assert all(hasattr(matchflow, name) for name in matchflow.__all__)


def test_a_health_state_of_another_time_is_unknown() -> None:
    assert replies.health(Int32Value(value=17)) is matchflow.Health.UNKNOWN
