"""The metrics of action collapse against numbers made by hand, and what does not change them."""

import numpy as np
import pytest

from qscape.inspect.collapse import project_on_simplex, share_at_bound
from qscape.ops.collapse import action_collapse
from qscape.ops.etf import haar_frame, simplex_etf

SHARED = ("equinorm_h", "equiangularity_h", "max_angle_h", "within_variation", "self_duality")
RNG = np.random.default_rng(0)
W4 = simplex_etf(4, haar_frame(RNG, 8, 3))


def of(y, w=W4, scale=5.0):
    """Features that have collapsed onto the rows of the action layer."""
    y = np.asarray(y)
    return scale * w[y], y, w


def close(found, **expected):
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(found, name), value, atol=6e-7, err_msg=name)


def test_the_share_of_features_at_the_bound():
    features = np.array([[3.0, 4.0], [0.0, 4.99], [4.999, 0.0], [1.0, 0.0]])
    assert share_at_bound(features, 25.0) == 0.5
    assert np.isnan(share_at_bound(features, None))


def test_the_plane_of_fewer_than_three_actions_is_completed_by_the_action_layer():
    w = np.array([[2.0, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0]])
    features = np.array([[3.0, 0, 0, 9], [1, 0, 0, 9], [0, 2, 0, 9], [0, 2, 0, 9]])
    found = project_on_simplex(features, np.array([0, 0, 1, 1]), w)
    assert found["occurring"] == [0, 1]
    side = np.sqrt(2)
    np.testing.assert_allclose(found["means"], [[-side, 0], [side, 0]], atol=1e-12)
    at = np.array(found["rows"])  # an equilateral triangle in the plane of the rows
    np.testing.assert_allclose(at @ at.T, 2 * (1.5 * np.eye(3) - 0.5), atol=1e-12)
    one = project_on_simplex(features[:2], np.zeros(2, int), w)
    np.testing.assert_allclose(np.linalg.norm(one["rows"], axis=1), 1.0)


def test_everything_collapsed():
    found = action_collapse(*of(np.repeat(np.arange(4), 3)))
    for name in (*SHARED, "equinorm_w", "equiangularity_w", "max_angle_w"):
        assert abs(getattr(found, name)) < 1e-12, name
    assert found.nearest_mean_agreement == 1
    assert found.alignment == pytest.approx(1, abs=1e-12)
    assert found.max_angle_h_uncentred < 1e-12
    assert (found.classes, found.least_count, found.zero_means) == (4, 3, 0)


def test_unbalanced_classes_count_alike_unless_samples_are_centred():
    given = of(np.repeat(np.arange(4), (5, 2, 1, 4)))
    close(action_collapse(*given), **dict.fromkeys(SHARED, 0.0))
    close(
        action_collapse(*given, centre="samples"),
        equinorm_h=0.166305,
        equiangularity_h=0.257089,
        max_angle_h=0.216493,
        self_duality=0.086622,
        within_variation=0.0,
    )


def test_a_missing_action():
    h, y, w = of([0, 0, 1, 1, 3, 3])
    found = action_collapse(h, y, w)
    assert found.classes == 3
    close(found, **dict.fromkeys(SHARED, 0.0))
    from qscape.ops.collapse import cosines

    means = np.stack([h[y == k].mean(0) for k in (0, 1, 3)])
    np.testing.assert_allclose(cosines(means - means.mean(0)), -0.5)
    assert found.max_angle_h_uncentred < 1e-12, "uncentred means keep the angle of four actions"
    # What the centring of W_S is for: without it a collapsed set scores this.
    m, ws = means - means.mean(0), w[[0, 1, 3]]
    raw = np.square(ws / np.linalg.norm(ws) - m / np.linalg.norm(m)).sum()
    np.testing.assert_allclose(raw, 0.114382, atol=1e-6)


HAND = np.array([[3, 0], [1, 0], [0, 2], [0, 2], [-2, -1], [-2, -3]], float)
HAND_Y, HAND_W = np.array([0, 0, 1, 1, 2, 2]), np.array([[1, 0], [0, 1], [-1, -1]], float)


def test_made_by_hand():
    close(
        action_collapse(HAND, HAND_Y, HAND_W),
        equinorm_h=0.171573,
        equiangularity_h=1 / 3,
        max_angle_h=0.304738,
        within_variation=1 / 9,
        self_duality=0.0,
        nearest_mean_agreement=1.0,
        alignment=0.988211,
        equinorm_w=0.171573,
    )


def test_one_sample_more():
    h, y = np.vstack([HAND, [4, 0]]), np.append(HAND_Y, 0)
    both = (
        {
            "equinorm_h": 0.161113,
            "equiangularity_h": 0.268618,
            "max_angle_h": 0.238551,
            "within_variation": 0.118064,
            "self_duality": 0.009790,
        },
        {
            "equinorm_h": 0.222624,
            "equiangularity_h": 0.222999,
            "max_angle_h": 0.213721,
            "within_variation": 0.114834,
            "self_duality": 0.028714,
        },
    )
    for centre, expected in zip(("classes", "samples"), both, strict=True):
        close(action_collapse(h, y, HAND_W, centre), **expected)


def test_two_classes():
    found = action_collapse(HAND[:4], HAND_Y[:4], HAND_W)
    close(found, equinorm_h=0.0, equiangularity_h=0.0, max_angle_h=0.0, within_variation=0.0625)
    assert found.classes == 2


def test_one_class_and_no_length():
    found = action_collapse(HAND[:2], HAND_Y[:2], HAND_W)
    assert np.isnan([getattr(found, name) for name in SHARED]).all()
    assert found.nearest_mean_agreement == 1
    nothing = action_collapse(np.zeros((3, 2)), np.arange(3), HAND_W)
    assert nothing.zero_means == 3
    assert np.isnan(nothing.alignment)
    assert np.isnan(nothing.max_angle_h)
    with pytest.raises(ValueError, match="at least one"):
        action_collapse(np.zeros((0, 2)), np.zeros(0, int), HAND_W)


def test_a_single_action_has_no_simplex():
    found = action_collapse(np.eye(3), np.zeros(3, int), np.ones((1, 3)))
    assert np.isnan([found.max_angle_h, found.max_angle_w, found.max_angle_h_uncentred]).all()
    close(found, equinorm_w=0.0, nearest_mean_agreement=1.0)


def test_agreement_is_between_valid_actions():
    """The features of state 0 point at action 2, which is not valid there."""
    h, w, y = np.array([[0.9, 1.0], [1.0, 0.0], [0.0, 1.0]]), np.eye(2), np.array([0, 0, 1])
    valid = np.array([[True, False], [True, True], [True, True]])
    assert action_collapse(h, y, w).nearest_mean_agreement == pytest.approx(2 / 3)
    assert action_collapse(h, y, w, valid=valid).nearest_mean_agreement == 1.0


def test_a_mean_without_direction_leaves_only_its_pairs_out():
    h = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
    found = action_collapse(h, np.arange(3), HAND_W)
    assert found.zero_means == 1
    close(found, max_angle_h=0.5, equiangularity_h=0.0)


def test_what_changes_nothing():
    """Rotations change none of the metrics; scales and shifts of the features none of 1-5."""
    h, y = RNG.normal(size=(60, 8)), RNG.integers(0, 4, 60)
    w = RNG.normal(size=(4, 8))
    before = np.array(action_collapse(h, y, w))
    turn = haar_frame(RNG, 8, 8)
    np.testing.assert_allclose(action_collapse(h @ turn, y, w @ turn), before, atol=1e-12)
    moved = action_collapse(3.0 * h + RNG.normal(size=8), y, w)
    for name in SHARED:
        np.testing.assert_allclose(
            getattr(moved, name), getattr(action_collapse(h, y, w), name), atol=1e-12, err_msg=name
        )


def test_variation_is_the_trace_formula():
    h, y = RNG.normal(size=(60, 8)), RNG.integers(0, 4, 60)
    means = np.stack([h[y == k].mean(0) for k in range(4)])
    m, r = means - means.mean(0), h - means[y]
    sigma_b, sigma_w = m.T @ m / 4, r.T @ r / 60
    trace = np.trace(sigma_w @ np.linalg.pinv(sigma_b, rcond=1e-10)) / 4
    np.testing.assert_allclose(action_collapse(h, y, W4).within_variation, trace, rtol=1e-10)
