"""What a handful of paired runs can and cannot say: intervals, tests, power, and pooling over data sets.

Every function takes plain numbers (AP points in this package, but any unit will do) and returns a dict that is written
to JSON as it is. Sources: Student's paired t interval; Efron & Tibshirani (1993), ch. 13, for the percentile
bootstrap; Cohen (1988) for power from the noncentral t; Satterthwaite (1946) for the degrees of freedom of a mean of
means; Davison & Hinkley (1997), section 3.8, for the two-level bootstrap; Holm (1979) for several comparisons at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import optimize, stats

RESAMPLES = 20_000
MAX_SEEDS = 10_000


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Count, mean and sample standard deviation (n - 1), with the values themselves.

    Returns:
        ``n``, ``mean``, ``sd``, ``values``; ``sd`` is None for one value, ``mean`` too for none.
    """
    x = np.asarray(values, dtype=float)
    return {
        "n": len(x),
        "mean": float(x.mean()) if len(x) else None,
        "sd": float(x.std(ddof=1)) if len(x) > 1 else None,
        "values": x.tolist(),
    }


def paired(differences: Sequence[float], confidence: float = 0.95, power: float = 0.8) -> dict[str, Any]:
    """Everything said about one paired comparison: both intervals, the sign test, and what could have been seen.

    Args:
        differences: candidate minus baseline, one per seed.
        confidence: of the intervals; 1 - confidence is the two-sided error rate of the tests.
        power: chance of seeing the effect that `resolvable` names.

    Returns:
        `summary`, ``confidence``, ``t`` (`t_interval`), ``bootstrap`` (`bootstrap_interval`), ``sign`` (`sign_test`)
        and ``resolvable`` (`resolvable_effect` at the measured sd, and at the upper end of that sd's own interval).
    """
    result = summary(differences)
    n, sd = result["n"], result["sd"]
    low, high = sd_interval(differences, confidence)
    return {
        **result,
        "confidence": confidence,
        "t": t_interval(differences, confidence),
        "bootstrap": bootstrap_interval(differences, confidence),
        "sign": sign_test(differences),
        "resolvable": {
            "power": power,
            "effect": resolvable_effect(sd, n, power, 1 - confidence) if sd else None,
            "sd_interval": [low, high],
            "effect_at_upper_sd": resolvable_effect(high, n, power, 1 - confidence) if high else None,
        },
    }


def t_interval(differences: Sequence[float], confidence: float = 0.95) -> dict[str, Any]:
    """Student's interval and two-sided p-value for the mean of paired differences.

    Returns:
        ``low``, ``high``, ``t``, ``df``, ``p``; all but ``df`` are None for fewer than two differences, and for
        differences without any spread, which give no measure of chance.
    """
    x = np.asarray(differences, dtype=float)
    df = max(len(x) - 1, 0)
    if df == 0 or np.ptp(x) == 0:
        return {"low": None, "high": None, "t": None, "df": df, "p": None}
    mean, se = float(x.mean()), float(x.std(ddof=1) / math.sqrt(len(x)))
    half = float(stats.t.ppf((1 + confidence) / 2, df)) * se
    t = mean / se
    return {"low": mean - half, "high": mean + half, "t": t, "df": df, "p": float(2 * stats.t.sf(abs(t), df))}


def bootstrap_interval(differences: Sequence[float], confidence: float = 0.95, seed: int = 0) -> dict[str, Any]:
    """Percentile bootstrap interval of the mean of paired differences.

    It resamples the pairs, so nothing is assumed of the shape; with fewer than about ten pairs it is too narrow (it
    has the biased sd and no t quantile), which is why the t interval is quoted first.

    Args:
        differences: one per pair.
        confidence: of the interval.
        seed: of the resampling.

    Returns:
        ``low``, ``high`` (None for fewer than two differences or without spread) and ``resamples``.
    """
    x = np.asarray(differences, dtype=float)
    if len(x) < 2 or np.ptp(x) == 0:
        return {"low": None, "high": None, "resamples": 0}
    result = stats.bootstrap(
        (x,),
        np.mean,
        confidence_level=confidence,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    ci = result.confidence_interval
    return {"low": float(ci.low), "high": float(ci.high), "resamples": RESAMPLES}


def sign_test(differences: Sequence[float]) -> dict[str, Any]:
    """Exact two-sided sign test; ties are left out, and counted.

    Returns:
        ``wins`` (differences above zero), ``losses``, ``ties`` and ``p`` (None when every pair ties).
    """
    wins, losses = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    p = float(stats.binomtest(wins, wins + losses, 0.5).pvalue) if wins + losses else None
    return {"wins": wins, "losses": losses, "ties": len(differences) - wins - losses, "p": p}


def sd_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float | None, float | None]:
    """Chi-square interval of the standard deviation: a few seeds measure it poorly, and the power rests on it."""
    x = np.asarray(values, dtype=float)
    df = len(x) - 1
    if df < 1:
        return None, None
    tail = (1 - confidence) / 2
    sum_sq = float(x.var(ddof=1)) * df
    return math.sqrt(sum_sq / stats.chi2.isf(tail, df)), math.sqrt(sum_sq / stats.chi2.ppf(tail, df))


def t_power(effect: float, sd: float, n: int, alpha: float = 0.05) -> float:
    """Chance that the two-sided paired t test of `n` pairs rejects when the true mean difference is `effect`.

    Args:
        effect: true mean difference, in the unit of `sd`.
        sd: standard deviation of the differences, > 0.
        n: number of pairs, >= 2.
        alpha: two-sided error rate.

    Raises:
        ValueError: `sd` is not positive or `n` is below 2.
    """
    if sd <= 0 or n < 2:
        raise ValueError(f"t_power: expected sd > 0 and n >= 2, got sd={sd}, n={n}")
    return _shift_power(effect / sd * math.sqrt(n), n - 1, alpha)


def _shift_power(shift: float, df: float, alpha: float) -> float:
    """Chance that a two-sided t test rejects when the true mean is `shift` standard errors from zero."""
    crit = float(stats.t.isf(alpha / 2, df))
    upper, lower = float(stats.nct.sf(crit, df, shift)), float(stats.nct.cdf(-crit, df, shift))
    # scipy gives nan for the far tail, where the chance is 0 (lower tail) for a shift above zero
    return upper + (0.0 if math.isnan(lower) else lower)


def resolvable_shift(df: float, power: float = 0.8, alpha: float = 0.05) -> float:
    """True mean, in standard errors, that a two-sided t test of `df` degrees of freedom detects with chance `power`."""
    high = 1.0
    while _shift_power(high, df, alpha) < power:
        high *= 2
    return float(optimize.brentq(lambda s: _shift_power(s, df, alpha) - power, 1e-9, high, xtol=1e-12))


def resolvable_effect(sd: float, n: int, power: float = 0.8, alpha: float = 0.05) -> float | None:
    """Smallest true difference that `n` pairs detect with chance `power`: what the study could have seen.

    Returns:
        The effect in the unit of `sd`; None for fewer than two pairs or without spread.
    """
    if n < 2 or sd == 0:
        return None
    return sd / math.sqrt(n) * resolvable_shift(n - 1, power, alpha)


def seeds_needed(effect: float, sd: float, power: float = 0.8, alpha: float = 0.05) -> int | None:
    """Fewest paired seeds that detect a true difference of `effect` with chance `power`.

    Returns:
        At least 2; None if even `MAX_SEEDS` do not do, or without spread to reckon with.

    Raises:
        ValueError: `effect` is zero.
    """
    if effect == 0:
        raise ValueError("seeds_needed: expected an effect other than 0, got 0")
    if sd == 0:
        return None
    low, high = 2, 2
    while t_power(abs(effect), sd, high, alpha) < power:
        low, high = high + 1, high * 2
        if low > MAX_SEEDS:
            return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if t_power(abs(effect), sd, middle, alpha) >= power else (middle + 1, high)
    return low


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjustment: the p-values to quote when several rows are compared with one baseline.

    Args:
        p_values: raw ones; None entries (nothing to test) stay None and are not counted.
    """
    order = sorted((i for i, p in enumerate(p_values) if p is not None), key=lambda i: p_values[i] or 0.0)
    adjusted: list[float | None] = [None] * len(p_values)
    running = 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * float(p_values[i] or 0.0)))
        adjusted[i] = running
    return adjusted


def pooled(groups: Mapping[str, Sequence[float]], confidence: float = 0.95, seed: int = 0) -> dict[str, Any]:
    """Pool paired differences over data sets, every data set weighing the same, whatever its number of seeds.

    Two questions, two intervals:

    - ``these``: the mean effect on these very data sets. Only the seeds vary: the variance of the mean of means is
      sum(s_d^2 / n_d) / D^2, with Satterthwaite's degrees of freedom.
    - ``others``: the mean effect on data sets like these. Data sets vary too: a t interval over the D means with D - 1
      degrees of freedom (exact for normal effects and equal numbers of seeds). With two data sets it is very wide: that
      is what two data sets can say.

    Between the two, ``bootstrap`` resamples data sets, then the seeds within each. Both intervals come with
    ``resolvable``: the smallest true effect that a test of that kind detects with 80 % power.

    Args:
        groups: data set name -> differences, one per seed, at least one each.
        confidence: of the intervals.
        seed: of the bootstrap.

    Raises:
        ValueError: no group, or an empty one.
    """
    if not groups or any(len(g) == 0 for g in groups.values()):
        sizes = {k: len(v) for k, v in groups.items()}
        raise ValueError(f"pooled: expected data sets with at least one difference each, got {sizes}")
    arrays = [np.asarray(g, dtype=float) for g in groups.values()]
    means = np.array([a.mean() for a in arrays])
    return {
        "datasets": len(arrays),
        "mean": float(means.mean()),
        "means": dict(zip(groups, means.tolist(), strict=True)),
        "confidence": confidence,
        "these": _mean_of_means(arrays, confidence),
        "others": {
            **t_interval(means.tolist(), confidence),
            "sd_between": _between_sd(arrays),
            "resolvable": resolvable_effect(float(means.std(ddof=1)), len(means), alpha=1 - confidence)
            if len(means) > 1
            else None,
        },
        "bootstrap": _two_level_bootstrap(arrays, confidence, seed),
    }


def _mean_of_means(arrays: list[np.ndarray], confidence: float) -> dict[str, Any]:
    """Interval of the unweighted mean of group means, groups fixed; Satterthwaite's degrees of freedom."""
    empty: dict[str, Any] = dict.fromkeys(("low", "high", "df", "se", "p", "resolvable"))
    if any(len(a) < 2 for a in arrays):
        return empty
    parts = np.array([a.var(ddof=1) / len(a) for a in arrays])
    if not parts.any():
        return empty
    mean, se = float(np.mean([a.mean() for a in arrays])), math.sqrt(parts.sum()) / len(arrays)
    df = float(parts.sum() ** 2 / sum(p**2 / (len(a) - 1) for p, a in zip(parts, arrays, strict=True)))
    half = float(stats.t.ppf((1 + confidence) / 2, df)) * se
    return {
        "low": mean - half,
        "high": mean + half,
        "df": df,
        "se": se,
        "p": float(2 * stats.t.sf(abs(mean / se), df)),
        "resolvable": se * resolvable_shift(df, alpha=1 - confidence),
    }


def _between_sd(arrays: list[np.ndarray]) -> float | None:
    """Spread of the true effect over data sets: variance of the means less what the seeds explain, not below zero."""
    if len(arrays) < 2 or any(len(a) < 2 for a in arrays):
        return None
    within = float(np.mean([a.var(ddof=1) / len(a) for a in arrays]))
    return math.sqrt(max(float(np.var([a.mean() for a in arrays], ddof=1)) - within, 0.0))


def _two_level_bootstrap(arrays: list[np.ndarray], confidence: float, seed: int) -> dict[str, Any]:
    """Percentile interval of the mean of means, resampling groups and then members of each drawn group."""
    if len(arrays) < 2:
        return {**bootstrap_interval(arrays[0].tolist(), confidence, seed), "levels": 1}
    rng = np.random.default_rng(seed)
    # (groups, resamples, draws): as many resampled means of each group as a group can be drawn at most
    shape = (RESAMPLES, len(arrays))
    inner = np.stack([rng.choice(a, size=(*shape, len(a))).mean(-1) for a in arrays])  # [group, resample, draw]
    picked = rng.integers(len(arrays), size=shape)  # [resample, draw]
    draws = np.take_along_axis(inner, picked[None], axis=0)[0].mean(-1)  # [resample]
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return {"low": float(low), "high": float(high), "resamples": RESAMPLES, "levels": 2}
