"""Statistics of records against other ways to compute them, on gates that were planted and on random numbers."""

import numpy as np
import pytest
import torch
from planted import CHANNELS, CLASSES, in_batches, planted, planted_images
from scipy import stats

from excite.analysis import (
    class_means,
    effective_rank,
    kinds_of_channels,
    omega_squared,
    opened,
    pooled_omega_squared,
    record_gates,
    saturation,
    site_correlation,
    specificity,
    z_scores,
)
from excite.analysis.accumulate import Accumulator, image_keys
from excite.analysis.moments import Moments
from excite.analysis.record import Images
from excite.analysis.taps import Place
from excite.errors import UserError

IMAGES = 200


@pytest.fixture(scope="module")
def record():
    return record_gates(planted(), in_batches(*planted_images(IMAGES)))


@pytest.fixture(scope="module")
def found(record):
    return dict(zip(["class", "brightness", "constant", "open", "dead"], specificity(record), strict=True))


def made_up(labels, *sites, classes=None, sample=10_000, order=None):
    """A record of these numbers: s [N, C] of each site."""
    labels = np.asarray(labels, np.int64)
    n = len(labels)
    places = [Place(f"gate{i}", "se", 1, "", s.shape[1], (0, 1)) for i, s in enumerate(sites)]
    names = [str(k) for k in range(labels.max() + 1 if classes is None else classes)]
    accumulator = Accumulator(places, names, sample=sample, top_images=2, seed=0)
    index = np.arange(n)
    none = np.full(n, -1), np.full(n, np.nan)
    images = Images(index, image_keys(index, None, 0), ("",) * n, labels, *none)
    accumulator.add(np.concatenate(sites, 1).astype(np.float32), images)
    return accumulator.finish()


def omega_by_anova(s, labels):
    """One channel's, from scipy's F: omega^2 = (K - 1) (F - 1) / ((K - 1) (F - 1) + n)."""
    groups = [s[labels == k] for k in np.unique(labels)]
    f = stats.f_oneway(*groups).statistic
    between = (len(groups) - 1) * (f - 1)
    return between / (between + len(s))


def omega_by_dummies(s, labels):
    """The whole gate's, from a regression on indicators of the classes."""
    x = (labels[:, None] == np.unique(labels)).astype(float)
    residual = s - x @ np.linalg.lstsq(x, s, rcond=None)[0]
    n, k = x.shape
    within, total = (residual**2).sum(), ((s - s.mean(0)) ** 2).sum()
    error = within / (n - k)
    return (total - within - (k - 1) * error) / (total + error)


# --- class specificity ---


def test_specificity_where_it_was_planted(found):
    of = found["class"]
    classes = [c for c in range(CHANNELS) if c != CLASSES]
    assert of.omega2 > 0.999 and (of.channels[classes] > 0.999).all() and of.channels[CLASSES] == 0
    assert of.p == 0.001 and of.p_holm == 0.005 and (of.q_channels[classes] < 0.002).all()
    assert of.p_channels[CLASSES] == of.q_channels[CLASSES] == 1
    assert of.interval[0] > 0.999 and of.null_high < 0.05


@pytest.mark.parametrize("kind", ["brightness", "open", "dead"])
def test_none_where_none_was_planted(found, kind):
    of = found[kind]
    assert abs(of.omega2) < 0.03 and of.p > 0.05 and of.p_holm > 0.5
    assert of.interval[0] < 0 < of.interval[1]


def test_a_gate_that_never_changes(found):
    of = found["constant"]
    assert of.omega2 == 0 and not of.channels.any() and of.p == of.p_holm == 1 and (of.p_channels == 1).all()


def test_omega_squared_by_two_other_ways():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 6, 300)
    labels[labels == 4] = 3
    s = rng.normal(size=(300, 5)) * [1, 2, 3, 4, 5] + labels[:, None] * [0, 0.2, 1, 0, 0.1]
    moments = Moments.of(s, labels, 6)
    np.testing.assert_allclose(omega_squared(moments), [omega_by_anova(s[:, c], labels) for c in range(5)], rtol=1e-9)
    assert pooled_omega_squared(moments) == pytest.approx(omega_by_dummies(s, labels), rel=1e-10)
    (of,) = specificity(made_up(labels, s), permutations=0)
    assert of.sample_omega2 == of.omega2 == pytest.approx(omega_by_dummies(s.astype(np.float32), labels), rel=1e-5)
    assert of.p == 1 and np.isnan(of.null_high)


def test_omega_squared_is_not_biased_upward():
    """The raw share of variance is: (K - 1) / (n - 1) where classes do not matter."""
    rng = np.random.default_rng(2)
    labels = np.arange(60) % 20
    values = [pooled_omega_squared(Moments.of(rng.normal(size=(60, 2)), labels, 20)) for _ in range(500)]
    raw = 19 / 59
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(500) + 0.005 < 0.1 * raw


def test_too_few_images_say_nothing():
    one_each = Moments.of(np.random.default_rng(0).normal(size=(3, 2)), np.arange(3), 3)
    assert np.isnan(omega_squared(one_each)).all() and np.isnan(pooled_omega_squared(one_each))
    one_class = Moments.of(np.ones((3, 2)), np.zeros(3, int), 2)
    assert np.isnan(omega_squared(one_class)).all()
    (of,) = specificity(made_up([0, 0, 0], np.random.default_rng(0).random((3, 2)), classes=2))
    assert of.p == 1 and np.isnan(of.omega2) and np.isnan(of.interval).all()


@pytest.mark.parametrize("classes", [4, 90])
def test_p_by_dealing_labels_out_again(classes):
    rng = np.random.default_rng(3)
    labels = rng.integers(0, classes, 240)
    s = rng.normal(size=(240, 3)) + 0.22 * rng.normal(size=(classes, 3))[labels]
    (of,) = specificity(made_up(labels, s), permutations=199, seed=7)
    s = s.astype(np.float32).astype(np.float64)
    deals = [rng.permutation(labels) for _ in range(199)]
    null = np.array([omega_by_dummies(s, deal) for deal in deals])
    expected = (1 + (null >= omega_by_dummies(s, labels)).sum()) / 200
    # Two sets of 199 deals: standard errors of a binomial.
    error = np.sqrt(2 * max(expected * (1 - expected), 0.005) / 199)
    assert abs(of.p - expected) < 4 * error
    assert of.null_high == pytest.approx(np.quantile(null, 0.95), abs=0.02)
    assert ((of.p_channels >= 1 / 200) & (of.p_channels <= 1)).all()


def test_p_is_uniform_on_shuffled_labels():
    """On planted gates that do tell classes apart, once labels are dealt out at random."""
    images, _ = planted_images(80)
    network, p = planted(("class",)), []
    scales = record_gates(network, in_batches(images, torch.arange(80) % CLASSES)).sites[0].sample
    rng = np.random.default_rng(4)
    for seed in range(150):
        record = made_up(rng.permutation(np.arange(80) % CLASSES), scales)
        p.append(specificity(record, permutations=99, seed=seed)[0].p)
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert 0.01 < np.mean(np.array(p) <= 0.1) < 0.19  # 0.1, give or take 4 standard errors


def test_the_interval_covers():
    """Of the omega^2 of very many images, by what its level says."""
    rng = np.random.default_rng(5)
    centres = rng.normal(size=(5, 4)) * 0.5

    def drawn(n):
        labels = rng.integers(0, 5, n)
        return rng.gamma(2, size=(n, 4)) * [1, 1, 2, 0.5] + centres[labels], labels

    s, labels = drawn(400_000)
    truth = pooled_omega_squared(Moments.of(s, labels, 5))
    covered = 0
    for _ in range(200):
        s, labels = drawn(300)
        (of,) = specificity(made_up(labels, s), permutations=0, level=0.9)
        covered += of.interval[0] <= truth <= of.interval[1]
    assert 0.82 < covered / 200 < 0.97
    # From a sample of the images, the interval is still that of all of them.
    s, labels = drawn(4000)
    wide, narrow = (specificity(made_up(labels, s, sample=n), permutations=0)[0] for n in (500, 4000))
    assert wide.omega2 == narrow.omega2
    width = [np.diff(of.interval).item() for of in (wide, narrow)]
    assert width[0] == pytest.approx(width[1], rel=0.25)


def test_many_channels_and_deals_in_parts(monkeypatch):
    rng = np.random.default_rng(10)
    record = made_up(rng.integers(0, 7, 50), rng.random((50, 20)))
    (whole,) = specificity(record, permutations=30)
    monkeypatch.setattr("excite.analysis.class_specificity._STRIP", 6)
    monkeypatch.setattr("excite.analysis.class_specificity._NUMBERS", 1200)
    (parts,) = specificity(record, permutations=30)
    np.testing.assert_array_equal(whole.p_channels, parts.p_channels)
    assert whole.p == parts.p and whole.null_high == pytest.approx(parts.null_high)


def test_channels_are_corrected_for_their_number():
    rng = np.random.default_rng(6)
    labels = np.arange(120) % 3
    s = rng.random((120, 40))
    s[:, :4] += labels[:, None]
    (of,) = specificity(made_up(labels, s), permutations=499)
    assert (of.q_channels <= 0.05).tolist()[:4] == [True] * 4 and (of.q_channels <= 0.05).sum() < 8
    assert (of.q_channels >= of.p_channels).all()
    with pytest.raises(UserError, match="permutations=-1"):
        specificity(made_up(labels, s), permutations=-1)
    with pytest.raises(UserError, match="level=95"):
        specificity(made_up(labels, s), level=95)


# --- single channels ---


def test_class_means():
    s = np.array([[0.1, 0.5], [0.3, 0.5], [0.8, 0.6]])
    means = class_means(made_up([0, 0, 2], s, classes=4).sites[0])
    np.testing.assert_allclose(means.mean, [[0.2, 0.5], [np.nan] * 2, [0.8, 0.6], [np.nan] * 2], rtol=1e-6)
    np.testing.assert_allclose(means.sd[0], [np.sqrt(0.02), 0], atol=1e-7)
    assert np.isnan(means.sd[1:]).all() and means.count.tolist() == [2, 0, 1, 0]


def test_saturation_and_channels_that_do_nothing(record):
    by_kind = dict(zip(["class", "brightness", "constant", "open", "dead"], record.sites, strict=True))
    kinds = {kind: kinds_of_channels(site) for kind, site in by_kind.items()}
    counts = {k: (int(v.constant.sum()), int(v.dead.sum()), int(v.always_open.sum())) for k, v in kinds.items()}
    assert counts == {
        "class": (1, 0, 0),
        "brightness": (0, 0, 0),
        "constant": (CHANNELS, 0, 0),
        "open": (CHANNELS, 0, CHANNELS),
        "dead": (CHANNELS, CHANNELS, 0),
    }
    of = saturation(by_kind["class"])
    open_share = np.full(CHANNELS, 1 / CLASSES)
    open_share[CLASSES] = 0
    np.testing.assert_allclose(of.high, open_share)
    np.testing.assert_allclose(of.low, 3 * open_share)
    assert of.mean_high == pytest.approx(open_share.mean()) and of.mean_low == pytest.approx(3 * open_share.mean())
    assert saturation(by_kind["open"]).mean_high == saturation(by_kind["dead"]).mean_low == 1
    assert not kinds_of_channels(by_kind["open"], bound=0).constant.any()
    with pytest.raises(UserError, match="bound=-1"):
        kinds_of_channels(by_kind["open"], bound=-1)


# --- channels together ---


def test_effective_rank():
    rng = np.random.default_rng(7)
    independent = rng.choice([-1.0, 1.0], size=(4096, 6))
    one = rng.random((50, 1)) * np.linspace(0.1, 1, 6)
    record = made_up(np.zeros(4096, int), independent)
    assert effective_rank(record.sites[0]) == pytest.approx(6, abs=0.05)
    assert effective_rank(made_up(np.zeros(50, int), one).sites[0]) == pytest.approx(1, abs=1e-4)
    assert effective_rank(made_up(np.zeros(50, int), np.full((50, 3), 0.3)).sites[0]) == 0
    # By the eigenvalues of the covariance.
    s = rng.random((300, 8)) @ rng.random((8, 8))
    values = np.sqrt(np.linalg.eigvalsh(np.cov(s.astype(np.float32).T)))
    expected = np.exp(stats.entropy(values))
    assert effective_rank(made_up(np.zeros(300, int), s).sites[0]) == pytest.approx(expected, rel=1e-4)
    few = rng.random((5, 40))
    values = np.linalg.svd(few - few.mean(0), compute_uv=False)[:4]
    assert effective_rank(made_up(np.zeros(5, int), few).sites[0]) == pytest.approx(
        np.exp(stats.entropy(values)), rel=1e-5
    )


def test_correlation_of_gates(record):
    alike = site_correlation(record)
    assert alike.shape == (5, 5) and np.isnan(alike[2]).all()
    moving = [0, 1, 3, 4]
    np.testing.assert_allclose(np.diag(alike)[moving], 1)
    # Three gates that see the brightness, one that sees the class.
    assert alike[1, 3] > 0.9 and alike[3, 4] > 0.99 and abs(alike[0, [1, 3, 4]]).max() < 0.05


def test_correlation_by_quadruples_of_images():
    """Song et al.'s estimate is a mean over all quadruples of different images."""
    from itertools import permutations

    rng = np.random.default_rng(8)
    x, y = rng.random((7, 3)), rng.random((7, 2))

    def hsic(k, h):
        total = [k[i, j] * (h[i, j] + h[q, r] - 2 * h[i, q]) for i, j, q, r in permutations(range(7), 4)]
        return np.mean(total)

    k, h = (s.astype(np.float32).astype(np.float64) for s in (x, y))
    k, h = k @ k.T, h @ h.T
    expected = hsic(k, h) / np.sqrt(hsic(k, k) * hsic(h, h))
    alike = site_correlation(made_up(np.zeros(7, int), x, y))
    assert alike[0, 1] == pytest.approx(expected, rel=1e-4) and alike[0, 1] == alike[1, 0]


def test_correlation_does_not_rise_with_width():
    rng = np.random.default_rng(9)
    values = []
    for _ in range(40):
        record = made_up(np.zeros(60, int), rng.random((60, 100)), rng.random((60, 200)))
        values.append(site_correlation(record)[0, 1])
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(40) < 0.1
    turned = rng.random((60, 4))
    rotation = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    assert site_correlation(made_up(np.zeros(60, int), turned, 3 * turned @ rotation))[0, 1] == pytest.approx(
        1, abs=1e-5
    )
    many = made_up(np.zeros(60, int), turned, turned)
    assert site_correlation(many, images=20)[0, 1] == pytest.approx(1)
    with pytest.raises(UserError, match="3 images: correlation of gates needs at least 4"):
        site_correlation(many, images=3)


# --- one image ---


def test_what_an_image_opened(record):
    image = 6  # of class 2
    found = opened(record, image, top=2, sites=["blocks.0.gate"])
    assert [item.channel for item in found] == [2, 6] and all(item.z > 1.5 and item.s > 0.9 for item in found)
    site = record.site("blocks.1.gate")
    s = site.sample[np.searchsorted(record.sample_rows, record.row_of(image))]
    expected = (s - site.overall_mean) / site.overall_sd
    np.testing.assert_allclose(z_scores(site, s), expected)
    every = opened(record, image, top=CHANNELS)
    assert len(every) == 5 * CHANNELS
    by_channel = {item.channel: item.z for item in every if item.site == "blocks.1.gate"}
    np.testing.assert_allclose([by_channel[c] for c in range(CHANNELS)], expected)
    sizes = [abs(item.z) for item in every if item.site == "blocks.1.gate"]
    assert sizes == sorted(sizes, reverse=True)
    assert all(item.z == 0 for item in every if item.site == "blocks.2.gate"), "constant"


def test_an_image_that_was_not_kept():
    record = made_up([0, 1, 0, 1], np.random.default_rng(0).random((4, 2)), sample=2)
    left = min(set(range(4)) - set(record.sample_rows.tolist()))
    with pytest.raises(UserError, match=f"image {left} is not in the sample of 2 images"):
        opened(record, left)
    with pytest.raises(UserError, match="image 9 is not among the 4"):
        opened(record, 9)
