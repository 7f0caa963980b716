"""Statistics against hand-computed numbers, scipy, and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from nlu_ppo.statistics import accuracy_interval, bootstrap_interval, holm, mean_std, paired_test


def mean_of(values):
    array = np.asarray(values, dtype=float)
    return lambda indices: array[indices].mean()


class TestBootstrap:
    def test_agrees_with_scipy(self):
        values = np.random.default_rng(1).random(80)
        low, high = bootstrap_interval(mean_of(values), 80, samples=4000)
        reference = scipy.stats.bootstrap(
            (values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(2)
        ).confidence_interval
        assert low == pytest.approx(reference.low, abs=0.01)
        assert high == pytest.approx(reference.high, abs=0.01)

    def test_agrees_with_the_binomial(self):
        # The bootstrap mean of 0/1 values is Binomial(n, p) / n, whose quantiles are known.
        correct = [1] * 70 + [0] * 30
        low, high = accuracy_interval(correct, samples=20_000)
        expected = scipy.stats.binom.ppf([0.025, 0.975], 100, 0.7) / 100
        assert (low, high) == pytest.approx(tuple(expected), abs=0.0101)

    @pytest.mark.parametrize("groups", [None, [0, 0, 1, 2, 2, 2, 3, None, None, 4]])
    def test_fast_path_gives_the_same_numbers(self, groups):
        values = [0, 1, 1, 0, 1, 0.5, 0, 1, 1, 1]
        slow = bootstrap_interval(mean_of(values), 10 if groups is None else groups, seed=3)
        assert accuracy_interval(values, groups, seed=3) == pytest.approx(slow, abs=1e-12)

    def test_seed_decides(self):
        values = np.random.default_rng(0).random(30)
        assert bootstrap_interval(mean_of(values), 30) == bootstrap_interval(mean_of(values), 30)
        assert bootstrap_interval(mean_of(values), 30) != bootstrap_interval(mean_of(values), 30, seed=1)

    def test_confidence_widens(self):
        values = np.random.default_rng(0).random(30)
        narrow, wide = (accuracy_interval(values, confidence=c) for c in (0.5, 0.99))
        assert wide[0] < narrow[0] < narrow[1] < wide[1]

    def test_groups_are_drawn_whole(self):
        groups = ["a", "a", "b", "c", "c", "c"]
        size = {"a": 2, "b": 1, "c": 3}
        seen = []

        def score(indices):
            seen.append(indices)
            return 0.0

        bootstrap_interval(score, groups, samples=50)
        for indices in seen:
            for group, count in size.items():
                assert sum(groups[i] == group for i in indices) % count == 0

    def test_dependent_examples_widen_the_interval(self):
        # Ten copies of each answer carry the information of one.
        answers = np.random.default_rng(0).integers(0, 2, 30)
        correct, groups = np.repeat(answers, 10), np.repeat(np.arange(30), 10).tolist()
        alone, grouped = accuracy_interval(correct), accuracy_interval(correct, groups)
        single = accuracy_interval(answers)
        assert grouped == pytest.approx(single, abs=1e-12)
        assert grouped[1] - grouped[0] > 2 * (alone[1] - alone[0])

    def test_fresh_groups_keep_a_repeated_group_apart(self):
        # Exact match per question is, by the drawn groups, a mean over questions, with that mean's interval.
        questions = np.repeat(np.arange(40), 3)
        right = np.random.default_rng(0).random(120) < 0.8
        exact = np.array([right[questions == q].all() for q in range(40)])

        def exact_match(indices, draws):
            return np.mean([right[indices[draws == d]].all() for d in np.unique(draws)])

        interval = bootstrap_interval(exact_match, questions.tolist(), samples=200, fresh_groups=True)
        assert interval == pytest.approx(accuracy_interval(exact, samples=200), abs=1e-12)

    @pytest.mark.parametrize(
        ("values", "expected"), [([1], 1.0), ([0], 0.0), ([1] * 9, 1.0), ([0.25] * 5, 0.25)]
    )
    def test_equal_values_give_a_point(self, values, expected):
        assert accuracy_interval(values) == (expected, expected)
        assert bootstrap_interval(mean_of(values), len(values), samples=20) == (expected, expected)

    def test_one_group_gives_a_point(self):
        assert accuracy_interval([1, 0, 1, 1], ["q"] * 4) == (0.75, 0.75)

    def test_undefined_resamples_are_left_out(self):
        # A correlation is undefined where all values of a resample are equal.
        x = np.array([1.0, 2.0, 3.0])

        def correlation(indices):
            chosen = x[indices]
            return float("nan") if np.ptp(chosen) == 0 else float(np.corrcoef(chosen, 2 * chosen)[0, 1])

        assert bootstrap_interval(correlation, 3) == pytest.approx((1.0, 1.0))
        with pytest.raises(ValueError, match="undefined"):
            bootstrap_interval(lambda indices: float("nan"), 3)

    def test_wrong_input(self):
        with pytest.raises(ValueError, match="no examples"):
            bootstrap_interval(mean_of([]), 0)
        with pytest.raises(ValueError, match="no examples"):
            bootstrap_interval(mean_of([]), [])
        with pytest.raises(ValueError, match="non-empty"):
            accuracy_interval([])
        with pytest.raises(ValueError, match="NaN"):
            accuracy_interval([1.0, math.nan])
        with pytest.raises(ValueError, match="2 values but 1 groups"):
            accuracy_interval([1, 0], ["a"])
        with pytest.raises(ValueError, match="confidence"):
            accuracy_interval([1, 0], confidence=95)
        with pytest.raises(ValueError, match="samples"):
            accuracy_interval([1, 0], samples=0)

    @pytest.mark.parametrize("grouped", [False, True])
    def test_coverage(self, grouped):
        # 95% intervals of 400 simulated evaluations: a standard error of 1.1 points.
        rng = np.random.default_rng(0)
        hits = 0
        for trial in range(400):
            if grouped:
                skill = rng.beta(2, 1, size=60)  # mean 2/3; the answers of one question share its difficulty
                correct, truth = (rng.random((60, 4)) < skill[:, None]).ravel(), 2 / 3
                groups = np.repeat(np.arange(60), 4).tolist()
            else:
                correct, truth, groups = rng.random(150) < 0.7, 0.7, None
            low, high = accuracy_interval(correct, groups, samples=400, seed=trial)
            hits += low <= truth <= high
        assert 0.91 <= hits / 400 <= 0.98


class TestPairedTest:
    def test_mcnemar_by_hand(self):
        # 8 examples only a gets right, 2 only b: 2 * P(Binomial(10, 1/2) <= 2) = 2 * 56 / 1024.
        a = [1] * 8 + [0] * 2 + [1] * 5 + [0] * 5
        b = [0] * 8 + [1] * 2 + [1] * 5 + [0] * 5
        test = paired_test(a, b)
        assert test.p_value == pytest.approx(112 / 1024)
        assert test.difference == pytest.approx(0.3)
        assert (test.method, test.n, test.better, test.worse) == ("mcnemar", 20, 8, 2)

    @given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
    def test_mcnemar_agrees_with_scipy(self, pairs):
        a, b = zip(*pairs, strict=True)
        test = paired_test(a, b)
        discordant = test.better + test.worse
        expected = scipy.stats.binomtest(test.better, discordant).pvalue if discordant else 1.0
        assert test.p_value == pytest.approx(expected)

    def test_large_mcnemar_agrees_with_scipy(self):
        a, b = [1] * 5200 + [0] * 4800, [0] * 5200 + [1] * 4800
        assert paired_test(a, b).p_value == pytest.approx(scipy.stats.binomtest(5200, 10_000).pvalue)

    def test_permutation_by_hand(self):
        # Differences 0.5 and 0.25: of the four sign choices two reach |0.75|.
        assert paired_test([0.5, 0.75], [0.0, 0.5]).p_value == pytest.approx(0.5)

    def test_permutation_agrees_with_scipy(self):
        rng = np.random.default_rng(0)
        a, b = rng.integers(0, 4, 12) / 3, rng.integers(0, 4, 12) / 3  # means over three seeds
        reference = scipy.stats.permutation_test(
            (a, b), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=math.inf
        )
        test = paired_test(a, b)
        assert test.method == "permutation"
        assert test.p_value == pytest.approx(reference.pvalue)

    def test_means_over_seeds_stay_exact(self):
        # Sums of thirds fall on a lattice, so thousands of examples need no sampling.
        rng = np.random.default_rng(0)
        a, b = rng.integers(0, 4, 4000) / 3, rng.integers(0, 4, 4000) / 3
        test = paired_test(a, b)
        assert test.method == "permutation"
        normal = 2 * scipy.stats.norm.sf(abs((a - b).sum()) / math.sqrt(((a - b) ** 2).sum()))
        assert test.p_value == pytest.approx(normal, abs=0.01)

    def test_overwhelming_evidence_is_not_zero(self):
        assert 0 < paired_test([1] * 5000, [0] * 5000).p_value < 1e-300

    def test_sampled_permutation_agrees_with_the_t_test(self):
        rng = np.random.default_rng(0)
        b = rng.random(300)
        a = b + rng.normal(0.02, 0.15, 300)
        test = paired_test(a, b)
        assert test.method == "permutation (sampled)"
        assert test.p_value == pytest.approx(scipy.stats.ttest_rel(a, b).pvalue, abs=0.01)
        assert paired_test(a + 9, b).p_value == pytest.approx(1 / 10_001)  # never 0

    def test_groups_flip_as_a_whole(self):
        # Four answers to one question are one observation: no evidence at all.
        assert paired_test([1] * 4, [0] * 4, ["q"] * 4).p_value == 1.0
        assert paired_test([1] * 4, [0] * 4).p_value == pytest.approx(0.125)
        grouped = paired_test([1] * 6, [0] * 6, ["p", "p", "q", "q", "r", "r"])
        assert grouped.p_value == pytest.approx(0.25)
        assert (grouped.difference, grouped.better) == (1.0, 3)

    def test_symmetric(self):
        a, b = [1, 1, 0, 1, 1], [0, 0, 1, 0, 1]
        forth, back = paired_test(a, b), paired_test(b, a)
        assert forth.p_value == back.p_value
        assert forth.difference == -back.difference

    def test_no_difference(self):
        test = paired_test([1, 0, 1], [1, 0, 1])
        assert (test.difference, test.p_value) == (0.0, 1.0)

    def test_false_alarms_are_rare(self):
        # Under the null, p <= 0.05 happens in at most 5% of experiments (standard error 1.1 points).
        rng = np.random.default_rng(0)
        alarms = sum(
            paired_test(rng.random(100) < 0.7, rng.random(100) < 0.7).p_value <= 0.05 for _ in range(400)
        )
        assert alarms / 400 <= 0.075

    def test_wrong_input(self):
        with pytest.raises(ValueError, match="same examples"):
            paired_test([1, 0], [1])
        with pytest.raises(ValueError, match="1 groups"):
            paired_test([1, 0], [1, 1], ["a"])
        with pytest.raises(ValueError, match="non-empty"):
            paired_test([], [])


def test_mean_std():
    assert mean_std([1.0, 2.0, 4.0]) == (pytest.approx(7 / 3), pytest.approx(math.sqrt(7 / 3)))
    assert mean_std([3.0]) == (3.0, None)
    with pytest.raises(ValueError, match="no values"):
        mean_std([])


class TestHolm:
    def test_by_hand(self):
        # 0.005 * 4, 0.01 * 3, 0.03 * 2, and 0.04 * 1, which is held at the one before it
        assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
        assert holm([0.5, 0.9]) == [1.0, 1.0]
        assert holm([0.03]) == [0.03]
        assert holm([]) == []

    @given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.001, 0.999))
    def test_rejects_what_the_procedure_rejects(self, values, level):
        # The procedure itself: from the smallest p on, reject while p * (tests left) is at most the level.
        rejected = set()
        for rank, p in enumerate(sorted(values)):
            if p * (len(values) - rank) > level:
                break
            rejected.add(p)
        assert {
            p for p, corrected in zip(values, holm(values), strict=True) if corrected <= level
        } == rejected

    def test_wrong_input(self):
        with pytest.raises(ValueError, match="between 0 and 1"):
            holm([0.1, 1.2])
