"""Expected values by hand, from published tables, or from slow simulations and enumerations that share no code."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from tscode_yolo.study import statistics as st


def test_t_interval_of_student_sleep_data():
    """Student's own data (1908): extra sleep, drug 2 minus drug 1; mean 1.58, t = 4.0621, p = 0.002833, df 9.

    The 95 % interval that R's t.test prints is [0.7001142, 2.4598858].
    """
    result = st.t_interval([1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4])
    assert result["df"] == 9
    assert result["t"] == pytest.approx(4.0621, abs=1e-4)
    assert result["p"] == pytest.approx(0.002833, abs=1e-6)
    assert (result["low"], result["high"]) == pytest.approx((0.7001142, 2.4598858), abs=1e-6)


def test_t_interval_of_three_differences_worked_by_hand():
    """1, 2, 3: mean 2, sd 1, se 1/sqrt(3); t table, 2 degrees of freedom, 0.975: 4.3027. 2 -+ 4.3027 * 0.57735."""
    result = st.t_interval([1, 2, 3])
    assert (result["low"], result["high"]) == pytest.approx((2 - 2.48414, 2 + 2.48414), abs=1e-4)


@pytest.mark.parametrize("values", [[], [1.3], [0.5, 0.5, 0.5]])
def test_nothing_is_said_of_chance_without_spread(values):
    assert st.t_interval(values)["low"] is None
    assert st.bootstrap_interval(values)["low"] is None
    result = st.paired(values)
    assert result["resolvable"]["effect"] is None


def test_bootstrap_interval_is_that_of_all_resamples():
    """With five pairs all 5^5 resamples can be listed: their 2.5 and 97.5 percentiles are the answer."""
    values = [0.3, -0.4, 1.7, 0.9, 2.2]
    means = [np.mean(pick) for pick in itertools.product(values, repeat=5)]
    low, high = np.percentile(means, [2.5, 97.5])
    result = st.bootstrap_interval(values)
    assert (result["low"], result["high"]) == pytest.approx((low, high), abs=0.03)
    assert result == st.bootstrap_interval(values)  # it repeats


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 1, 1, 1, 1], 2 / 32),  # 2 * (1/2)^5
        ([1, 1, 1, 1, -1], 12 / 32),  # 2 * (1 + 5) / 32
        ([1, 1, 1, 1, 1, 0, 0], 2 / 32),  # ties do not count
        ([1, -1], 1.0),
    ],
)
def test_sign_test_by_counting_coins(values, expected):
    result = st.sign_test(values)
    assert result["p"] == pytest.approx(expected)
    assert result["wins"] + result["losses"] + result["ties"] == len(values)


def test_sign_test_of_ties_only_says_nothing():
    assert st.sign_test([0, 0]) == {"wins": 0, "losses": 0, "ties": 2, "p": None}


def test_power_against_simulation():
    """Draw 40,000 studies of 6 pairs with mean 1 and sd 1.2, run each one's t test by its formula, count rejections."""
    rng = np.random.default_rng(3)
    x = rng.normal(1.0, 1.2, (40_000, 6))
    t = x.mean(1) / (x.std(1, ddof=1) / math.sqrt(6))
    simulated = (np.abs(t) > 2.570582).mean()  # t table: 5 degrees of freedom, two-sided 5 %
    assert st.t_power(1.0, 1.2, 6) == pytest.approx(simulated, abs=0.01)


@pytest.mark.parametrize(("effect", "needed"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_seeds_needed_are_those_of_published_tables(effect, needed):
    """Matched pairs, two-sided 5 %, power 80 %, effect in standard deviations: G*Power's and R's pwr.t.test numbers."""
    assert st.seeds_needed(effect, 1.0) == needed
    assert st.seeds_needed(-2 * effect, 2.0) == needed


def test_resolvable_effect_is_the_one_that_needs_just_these_seeds():
    for n in (2, 3, 5, 10):
        effect = st.resolvable_effect(1.3, n)
        assert st.t_power(effect, 1.3, n) == pytest.approx(0.8, abs=1e-6)
        assert st.seeds_needed(effect * 1.0001, 1.3) == n


def test_resolvable_effect_of_half_a_standard_deviation_lies_between_33_and_34_pairs():
    """Published sample size for 0.5 sd, power 80 %, two-sided 5 %: 33.37 pairs."""
    assert st.resolvable_effect(1.0, 34) < 0.5 < st.resolvable_effect(1.0, 33)


def test_type_one_error_is_kept_at_no_effect():
    assert st.t_power(0.0, 1.0, 7) == pytest.approx(0.05, abs=1e-9)
    with pytest.raises(ValueError, match="expected sd > 0"):
        st.t_power(1.0, 0.0, 5)
    with pytest.raises(ValueError, match="other than 0"):
        st.seeds_needed(0.0, 1.0)


def test_too_small_an_effect_needs_more_seeds_than_anyone_has():
    assert st.seeds_needed(1e-4, 1.0) is None


def test_sd_interval_by_the_chi_square_table():
    """sd 2 from 10 values: 9 * 4 / 19.023 and 9 * 4 / 2.700 (chi-square table, 9 degrees of freedom)."""
    values = np.array([-1.0, 1.0] * 5)
    values *= 2 / values.std(ddof=1)
    low, high = st.sd_interval(values)
    assert (low, high) == pytest.approx((math.sqrt(36 / 19.0228), math.sqrt(36 / 2.70039)), rel=1e-4)


def test_holm_by_hand():
    """0.01 * 3 = 0.03; 0.03 * 2 = 0.06; 0.04 * 1 = 0.04, raised to 0.06 so that the order is kept."""
    assert st.holm([0.01, 0.04, None, 0.03]) == pytest.approx([0.03, 0.06, None, 0.06])
    assert st.holm([0.6, 0.9]) == [1.0, 1.0]


def test_pooled_over_these_data_sets_is_welchs_interval():
    """Two groups: mean of means = (m1 + m2) / 2, whose df and half-width are Welch's for m1 - (-m2), halved.

    Welch's interval is worked out here from its formula.
    """
    a, b = [1.0, 2.0, 4.0], [0.5, -0.5, 0.0, 1.5]
    va, vb = np.var(a, ddof=1) / 3, np.var(b, ddof=1) / 4
    df = (va + vb) ** 2 / (va**2 / 2 + vb**2 / 3)
    result = st.pooled({"a": a, "b": b})
    assert result["mean"] == pytest.approx((np.mean(a) + np.mean(b)) / 2)
    assert result["these"]["df"] == pytest.approx(df)
    assert result["these"]["se"] == pytest.approx(math.sqrt(va + vb) / 2)
    assert result["these"]["high"] - result["mean"] == pytest.approx(result["mean"] - result["these"]["low"])


def test_pooled_over_other_data_sets_is_the_t_interval_of_the_means():
    """Means 1 and 3: mean 2, se 1, one degree of freedom, 12.7062: [-10.7062, 14.7062]."""
    result = st.pooled({"a": [0.0, 2.0], "b": [2.0, 4.0]})
    assert (result["others"]["low"], result["others"]["high"]) == pytest.approx((-10.7062, 14.7062), abs=1e-3)
    # variance of the means 2, of which 2/2 = 1 is the seeds': 1 is left between data sets
    assert result["others"]["sd_between"] == pytest.approx(1.0)


def test_the_resolvable_effect_of_pooled_seeds_is_seen_as_often_as_it_says():
    """Two groups of equal size and spread: Satterthwaite's test of the mean has 2(n - 1) degrees of freedom."""
    n, rng = 6, np.random.default_rng(0)
    sample = [rng.normal(0, 1, n) for _ in "ab"]
    a, b = ((s - s.mean()) / s.std(ddof=1) for s in sample)
    these = st.pooled({"a": a, "b": b})["these"]
    assert these["df"] == pytest.approx(2 * (n - 1))
    shift = these["resolvable"] / these["se"]
    t = (rng.normal(shift, 1, 200_000)) / np.sqrt(rng.chisquare(these["df"], 200_000) / these["df"])
    assert (np.abs(t) > scipy_stats.t.ppf(0.975, these["df"])).mean() == pytest.approx(0.8, abs=0.005)
    others = st.pooled({"a": a, "b": b + 1})["others"]
    assert others["resolvable"] == pytest.approx(st.resolvable_effect(math.sqrt(0.5), 2))
    assert st.pooled({"a": [1.0], "b": [2.0]})["these"]["resolvable"] is None


def test_two_level_bootstrap_is_that_of_all_resamples():
    """Two groups of two: 2^2 draws of groups, each with 2^2 draws of members, all listed."""
    groups = {"a": [0.0, 2.0], "b": [2.0, 4.0]}
    arrays = list(groups.values())
    pairs = [list(itertools.product(g, repeat=2)) for g in arrays]
    means = [
        (np.mean(first) + np.mean(second)) / 2
        for i, j in itertools.product(range(2), repeat=2)
        for first in pairs[i]
        for second in pairs[j]
    ]
    result = st.pooled(groups)["bootstrap"]
    assert (result["low"], result["high"]) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.26)
    assert result["levels"] == 2
    # the whole distribution, not only its ends: its standard deviation shows in a one-sigma interval
    wide = st.pooled(groups, confidence=0.5)["bootstrap"]
    assert (wide["low"], wide["high"]) == pytest.approx(tuple(np.quantile(means, [0.25, 0.75])), abs=0.26)


def test_pooled_intervals_cover_as_often_as_they_say():
    """600 made-up studies of 4 data sets with a true mean of 1, sd 0.8 between data sets and 1 between seeds.

    `others` must cover the true mean in about 95 % of them, `these` the mean of the drawn data sets.
    """
    rng = np.random.default_rng(1)
    covered = {"these": 0, "others": 0}
    for _ in range(600):
        effects = rng.normal(1.0, 0.8, 4)
        arrays = [rng.normal(e, 1.0, 5) for e in effects]
        these = st._mean_of_means(arrays, 0.95)
        others = st.t_interval([a.mean() for a in arrays])
        covered["these"] += these["low"] <= effects.mean() <= these["high"]
        covered["others"] += others["low"] <= 1.0 <= others["high"]
    assert covered["these"] / 600 == pytest.approx(0.95, abs=0.025)
    assert covered["others"] / 600 == pytest.approx(0.95, abs=0.025)


def test_pooled_refuses_an_empty_group():
    with pytest.raises(ValueError, match=r"got \{'a': 2, 'b': 0\}"):
        st.pooled({"a": [1.0, 2.0], "b": []})


def test_summary_and_paired_hold_the_parts():
    result = st.paired([1.0, 2.0, 0.5, 1.5])
    assert result["n"] == 4
    assert result["mean"] == 1.25
    assert result["sd"] == pytest.approx(0.6454972)  # sqrt(1.25 / 3)
    assert result["sign"]["wins"] == 4
    assert result["resolvable"]["effect"] < result["resolvable"]["effect_at_upper_sd"]
    assert st.summary([])["mean"] is None
