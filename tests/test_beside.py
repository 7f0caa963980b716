"""Metrics, settings and further sets of a study, and the papers' numbers beside them."""

from __future__ import annotations

import csv
import io
import json
from statistics import fmean

import numpy as np
import pytest
from run_folders import write_lines, write_run
from sklearn.metrics import f1_score

from nlu_ppo.tables import build_table, collect, compare, metrics_to_csv
from nlu_ppo.tables.beside import averages, metric_lines
from nlu_ppo.tables.expected import Expected
from nlu_ppo.tables.printed import load
from nlu_ppo.tables.readings import read_metrics
from nlu_ppo.tables.sections import sections
from nlu_ppo.tables.settings import flatten, telling_apart

LLAMA = "llama2_7b_chat"
BESIDE = "Metrics, beside the paper's"


def cells_of(table, title: str) -> list[dict[str, str]]:
    """The lines of a section, by header."""
    section = next(section for section in sections(table) if section.title == title)
    headers = [header for header, _ in section.columns]
    return [dict(zip(headers, row, strict=True)) for row in section.rows]


def only(rows: list[dict[str, str]], **wanted: str) -> dict[str, str]:
    (found,) = [row for row in rows if all(row[k] == v for k, v in wanted.items())]
    return found


class TestReadings:
    def test_splits_tasks_likelihood_and_numbers_of_no_set(self):
        raw = {
            "accuracy": 0.8,
            "score": 0.8,
            "likelihood/accuracy": 0.9,
            "likelihood/score": 0.9,
            "validation_mismatched/accuracy": 0.7,
            "validation_mismatched/score": 0.7,
            "validation_mismatched/likelihood/score": 0.75,
            "mine/accuracy": 0.25,  # a user's task: its interval tells it from a split
            "mine/score": 0.25,
            "mine/ci95_low": 0.2,
            "mine/ci95_high": 0.3,
            "mine/n": 40,
            "mine/unparsable": 4,
            "mine/shortened": 0,
            "mine/majority": 0.5,
            "ax/matthews": 0.1,
            "ax/score": 0.1,
            "perplexity/wikitext": 6.9,
            "glue_average": 0.75,
            "submission/RTE.tsv/rows": 3000,
        }
        readings, others = read_metrics(raw, "mnli", {"mnli", "ax"})
        assert list(readings) == [None, "validation_mismatched", "mine", "ax"]
        assert others == {"perplexity/wikitext": 6.9, "glue_average": 75.0}
        own, split, mine, ax = readings.values()
        assert (own.task, own.split, dict(own.metrics), own.likelihood) == (
            "mnli",
            None,
            {"accuracy": 80.0},
            90.0,
        )
        assert (split.task, split.split, split.score) == ("mnli", "validation_mismatched", 70.0)
        assert (split.likelihood, split.ci95, split.n) == (75.0, None, None)
        assert (mine.task, mine.split, mine.n, mine.unparsable) == ("mine", None, 40, 4)
        assert (mine.ci95, mine.majority, dict(mine.metrics)) == ((20.0, 30.0), 50.0, {"accuracy": 25.0})
        assert (ax.task, ax.score) == ("ax", 10.0)

    def test_a_group_of_tasks(self):
        raw = {"mnli/accuracy": 0.8, "mnli/validation_mismatched/accuracy": 0.7, "rte/accuracy": 0.6}
        readings, _ = read_metrics(raw, "glue", {"mnli", "rte"})
        assert {on: (r.task, r.split) for on, r in readings.items()} == {
            "mnli": ("mnli", None),
            "mnli/validation_mismatched": ("mnli", "validation_mismatched"),
            "rte": ("rte", None),
        }


class TestSettings:
    def test_flat_and_short(self):
        identity = {
            "task": {"name": "rte", "limit.train": None},
            "weights": "sha256:0123456789abcdef",
            "method": {"clip_range": 0.2, "keep": "best"},
            "lora": {"rslora": True, "targets": ["q_proj", "v_proj"]},
            "seed": 3,
            "adapter": None,
        }
        assert flatten(identity) == {
            "task.limit.train": "null",
            "weights": "01234567",
            "method.clip_range": "0.2",
            "method.keep": "best",
            "lora.rslora": "true",
            "lora.targets": "q_proj,v_proj",
            "adapter": "null",
        }

    def test_only_what_tells_runs_of_a_group_apart(self):
        sft = [{"lr": "1", "batch": "8"}]
        ppo = [{"lr": "2", "batch": "8", "clip": "0.1"}, {"lr": "2", "batch": "8", "clip": "0.2"}]
        assert telling_apart([sft, ppo]) == ("clip",)
        assert telling_apart([sft, ppo[:1]]) == ()

    def test_a_setting_that_only_some_have(self):
        fixed, adaptive = {"kl": "fixed"}, {"kl": "adaptive", "target": "6"}
        assert telling_apart([[fixed, adaptive]]) == ("kl",)
        assert telling_apart([[{"a": "1"}, {"a": "1", "submission": "x"}]]) == ("submission",)

    def test_an_ablation_has_a_column_and_a_row_each(self, tmp_path):
        for clip in (0.1, 0.2, 0.4):
            for seed in (0, 1):
                identity = {"method": {"clip_range": clip, "learning_rate": 9e-6}, "seed": seed}
                write_run(tmp_path, "ppo", seed, identity=identity, score=100 * clip + seed)
        write_run(tmp_path, "sft", identity={"method": {"learning_rate": 1e-4}, "seed": 0})
        failed = {"method": {"clip_range": 0.4, "learning_rate": 9e-6}, "seed": 2}
        write_run(tmp_path, "ppo", 2, identity=failed, status="failed", error="boom")
        study = collect(tmp_path, "demo")
        assert study.notes == ()
        rows = cells_of(build_table(study), "Scores")
        assert [(r["method"], r["method.clip_range"], r["score"], r["seeds"]) for r in rows[1:]] == [
            ("sft", "-", "75.0", "n=1"),
            ("ppo", "0.1", "10.5 ± 0.7", "n=2"),
            ("ppo", "0.2", "20.5 ± 0.7", "n=2"),
            ("ppo", "0.4", "40.5 ± 0.7", "n=2/3"),
        ]

    def test_zero_shot_of_the_same_evaluation_is_the_partner(self, tmp_path):
        for decoding, right in (("greedy", 0), ("sample", 1)):
            identity = {"eval": {"decoding": decoding}, "seed": 0}
            write_run(tmp_path, "zero_shot", correct=[right] * 8, identity=identity)
            write_run(tmp_path, "sft", correct=[1] * 8, identity=identity)
        comparisons, _ = compare(collect(tmp_path, "demo"))
        found = {dict(c.cell.settings)["eval.decoding"]: c.test.difference for c in comparisons.values()}
        assert found == {"greedy": 1.0, "sample": 0.0}


class TestFurtherSets:
    @pytest.fixture
    def study(self, tmp_path):
        """mnli with its second split, and one further task; zero-shot is wrong on all, sft right on all."""
        for method, right in (("zero_shot", 0), ("sft", 1)):
            metrics = {"accuracy": right, "score": right, "likelihood/score": 0.5}
            metrics |= {"validation_mismatched/accuracy": right, "validation_mismatched/score": right}
            metrics |= {"rte/accuracy": right, "rte/score": right, "rte/ci95_low": 0.0, "rte/ci95_high": 1.0}
            metrics |= {"rte/n": 6, "rte/unparsable": 3, "rte/majority": 0.5, "perplexity/wikitext": 7.384}
            folder = write_run(tmp_path, method, task="mnli", metrics=metrics, score=100.0 * right)
            sets = [("validation", 4, {}), ("validation_mismatched", 5, {})]
            sets += [("validation", 6, {"task": "rte", "also": True})]
            lines = [
                {
                    **named,
                    "id": f"{split}-{i}",
                    "label": right if i else None,
                    "reference": 1,
                    "correct": right,
                }
                for split, count, named in sets
                for i in range(count)
            ]
            write_lines(folder / "predictions.jsonl", lines)
        return collect(tmp_path, "demo")

    def test_each_set_has_rows(self, study):
        rows = cells_of(build_table(study), "Scores")
        assert [(r["evaluated on"], r["method"]) for r in rows] == [
            *(("mnli", m) for m in ("majority", "zero_shot", "sft")),
            *(("validation_mismatched", m) for m in ("zero_shot", "sft")),
            *(("rte", m) for m in ("majority", "zero_shot", "sft")),
        ]
        rte = only(rows, **{"evaluated on": "rte", "method": "sft"})
        assert (rte["score"], rte["95% interval"], rte["unparsable %"]) == ("100.0", "0.0 to 100.0", "50.0")
        # What result.json doesn't say of a further split, the predictions do. Of Binomial(5, 0.8), 2 is the 2.5%
        # quantile (P(X <= 1) = 0.7%, P(X <= 2) = 5.8%), and 5 the other.
        split = only(rows, **{"evaluated on": "validation_mismatched", "method": "sft"})
        assert (split["95% interval"], split["unparsable %"]) == ("40.0 to 100.0", "20.0")

    def test_each_set_has_a_test_on_its_own_examples(self, study):
        comparisons, _ = compare(study)
        found = {on: (c.test.n, c.test.p_value) for (_, on, _), c in comparisons.items()}
        assert found == {
            None: (4, pytest.approx(2 / 2**4)),
            "validation_mismatched": (5, pytest.approx(2 / 2**5)),
            "rte": (6, pytest.approx(2 / 2**6)),
        }
        corrected = {on: c.corrected for (_, on, _), c in comparisons.items()}
        # Holm by hand: 2/64 * 3, 2/32 * 2, 2/16
        assert corrected == pytest.approx({"rte": 6 / 64, "validation_mismatched": 4 / 32, None: 2 / 16})

    def test_metrics_and_perplexity(self, study):
        rows = cells_of(build_table(study), "Metrics")
        assert [r["metric"] for r in rows if r["method"] == "sft"] == [
            "accuracy",
            "perplexity/wikitext",
            "validation_mismatched/accuracy",
            "rte/accuracy",
        ]
        assert only(rows, metric="perplexity/wikitext", method="sft")["ours"] == "7.384"

    def test_a_group_of_tasks_pools_its_members(self, tmp_path):
        for method, right in (("zero_shot", 0), ("sft", 1)):
            metrics = {"rte/accuracy": right, "rte/score": right, "mrpc/f1": right, "mrpc/accuracy": right}
            folder = write_run(tmp_path, method, task="glue", metrics=metrics, score=50.0)
            lines = [
                {"task": task, "id": f"validation-{i}", "label": right, "reference": 1, "correct": right}
                for task in ("rte", "mrpc")
                for i in range(3)
            ]
            write_lines(folder / "predictions.jsonl", lines)
        study = collect(tmp_path, "demo")
        comparisons, _ = compare(study)
        assert {on: c.test.n for (_, on, _), c in comparisons.items()} == {None: 6, "rte": 3, "mrpc": 3}
        rows = cells_of(build_table(study), "Scores")
        rte = only(rows, **{"evaluated on": "rte", "method": "sft"})
        assert (rte["score"], rte["95% interval"], rte["vs zero_shot"]) == (
            "100.0",
            "100.0 to 100.0",
            "+100.0 (p=0.500)",
        )


class TestMetricIntervals:
    def test_bootstrap_of_each_metric(self, tmp_path):
        rng = np.random.default_rng(5)
        gold = rng.integers(0, 2, 300)
        said = np.where(rng.random(300) < 0.8, gold, 1 - gold)
        folder = write_run(
            tmp_path, task="mrpc", metrics={"f1": f1_score(gold, said), "accuracy": np.mean(gold == said)}
        )
        lines = [
            {"id": f"validation-{i}", "label": int(a), "reference": int(b), "correct": bool(a == b)}
            for i, (a, b) in enumerate(zip(said, gold, strict=True))
        ]
        write_lines(folder / "predictions.jsonl", lines)
        (row,) = [row for row in build_table(collect(tmp_path, "demo")).rows if row.cell.method == "sft"]
        metrics = dict(row.metrics)

        def f1(gold, said):
            return 2 * (gold & said).sum() / (gold.sum() + said.sum())

        assert f1(gold, said) == pytest.approx(f1_score(gold, said))
        for name, score in (("f1", f1), ("accuracy", lambda gold, said: np.mean(gold == said))):
            draws = [rng.integers(0, 300, 300) for _ in range(4000)]
            drawn = [score(gold[i], said[i]) for i in draws]
            low, high = np.quantile(drawn, [0.025, 0.975])
            assert metrics[name].ci95 == pytest.approx((100 * low, 100 * high), abs=0.8)
        assert row.ci95 == (65.0, 85.0)  # the score's stays as the run has it


def llama_run(outputs, method: str, task: str, value: float, metric: str = "accuracy", **more):
    """A run of the paper's model whose one number is `value` (percent)."""
    metrics = {metric: value / 100, "score": value / 100, **more.pop("metrics", {})}
    return write_run(outputs, method, task=task, model=LLAMA, metrics=metrics, score=value,
                     ci95=[value - 5, value + 5], correct=[1], **more)  # fmt: skip


class TestBeside:
    def test_differences_by_hand(self, tmp_path):
        llama_run(tmp_path, "ppo", "rte", 81.0)
        llama_run(tmp_path, "sft", "rte", 70.0)
        mnli = {"validation_mismatched/accuracy": 0.9007, "validation_mismatched/score": 0.9007}
        llama_run(tmp_path, "ppo", "mnli", 88.0, metrics=mnli)
        table = build_table(collect(tmp_path, "demo"), expected=Expected(printed=(load("a_table_9"),)))
        rows = cells_of(table, BESIDE)
        ppo = only(rows, task="rte", method="ppo")
        assert (ppo["ours"], ppo["paper's"], ppo["its 95% interval"]) == ("81.0", "84.90", "80.26 to 89.64")
        assert (ppo["difference"], ppo["inside ours"], ppo["of"]) == ("-3.9", "yes", "table 9")
        sft = only(rows, task="rte", method="sft")
        assert (sft["difference"], sft["inside ours"]) == ("-12.0", "no")  # 70.0 - 81.95; 65 to 75
        second = only(rows, metric="validation_mismatched/accuracy", method="ppo")
        assert (second["ours"], second["paper's"], second["difference"]) == ("90.1", "88.95", "+1.1")
        # printed, and not run: the task is there, ours is missing
        cola = only(rows, task="cola", method="ppo")
        assert (cola["ours"], cola["paper's"], cola["difference"]) == ("-", "64.54", "-")
        written = list(csv.DictReader(io.StringIO(metrics_to_csv(table))))
        line = next(r for r in written if (r["task"], r["method"]) == ("rte", "sft"))
        assert (line["printed"], line["difference"], line["inside"]) == ("81.95", "-11.95", "0")
        assert line["printed_in"] == "a_table_9"

    def test_another_model_has_no_difference(self, tmp_path):
        write_run(tmp_path, "ppo", task="rte", metrics={"accuracy": 0.5})
        table = build_table(collect(tmp_path, "demo"), expected=Expected(printed=(load("a_table_9"),)))
        row = only(cells_of(table, BESIDE), task="rte")
        assert (row["ours"], row["paper's"], row["of"]) == ("50.0", "84.90", "llama2_7b_chat, table 9")
        assert (row["difference"], row["inside ours"]) == ("-", "-")
        assert any("no reproduction" in note for note in table.printed_notes)

    def test_the_test_split_has_no_difference(self, tmp_path):
        llama_run(tmp_path, "ppo", "rte", 81.0)
        table = build_table(collect(tmp_path, "demo"), expected=Expected(printed=(load("a_table_1"),)))
        row = only(cells_of(table, BESIDE), task="rte")
        assert (row["ours"], row["paper's"], row["of"], row["difference"]) == (
            "81.0",
            "84.3",
            "table 1, test",
            "-",
        )
        faults = [note for note in table.printed_notes if "artefact of the labels" in note]
        assert len(faults) == 1  # the known fault stands on the page
        assert any("bert_large" in note and "without a run here" in note for note in table.printed_notes)

    def test_the_diagnostic_set_of_a_run_on_mnli(self, tmp_path):
        llama_run(tmp_path, "ppo", "mnli", 88.0, metrics={"ax/matthews": 0.5, "ax/score": 0.5})
        table = build_table(collect(tmp_path, "demo"), expected=Expected(printed=(load("a_table_1"),)))
        row = only(cells_of(table, BESIDE), metric="ax/matthews")
        # its labelled file is a test split for us, too
        assert (row["task"], row["ours"], row["paper's"], row["difference"]) == (
            "mnli",
            "50.0",
            "52.7",
            "-2.7",
        )

    def test_a_labelled_row_stands_beside_its_own_runs(self, tmp_path):
        llama_run(tmp_path, "ppo", "rte", 81.0)
        metrics = {"rte/accuracy": 0.86, "rte/score": 0.86, "sst2/accuracy": 0.9, "sst2/score": 0.9}
        llama_run(tmp_path, "ppo", "glue", 85.0, metrics=metrics)
        rows = {"ppo, multi-task": {"task": "glue", "method": "ppo"}}
        expected = Expected(printed=(load("a_table_1"),), rows=rows)
        found = cells_of(build_table(collect(tmp_path, "demo"), expected=expected), BESIDE)
        multi = only(found, task="glue", metric="rte/accuracy")
        assert (multi["ours"], multi["paper's"], multi["of"]) == (
            "86.0",
            "86.9",
            "ppo, multi-task, table 1, test",
        )
        assert only(found, task="rte", metric="accuracy")["paper's"] == "84.3"

    def test_another_name_for_a_task(self, tmp_path):
        llama_run(tmp_path, "ppo", "record_yesno", 60.0, metric="f1")
        expected = Expected(printed=(load("a_table_10"),), tasks={"record": "record_yesno"})
        table = build_table(collect(tmp_path, "demo"), expected=expected)
        assert only(cells_of(table, BESIDE), task="record_yesno", metric="f1")["paper's"] == "70.6"

    def test_transfer_and_perplexity(self, tmp_path):
        metrics = {
            "emotion/accuracy": 0.75,
            "emotion/score": 0.75,
            "emotion/ci95_low": 0.7,
            "emotion/ci95_high": 0.8,
        }
        llama_run(tmp_path, "ppo", "sst2", 95.0, metrics=metrics | {"perplexity/wikitext": 7.0})
        tables = (load("a_table_4"), load("a_table_6"))
        found = cells_of(build_table(collect(tmp_path, "demo"), expected=Expected(printed=tables)), BESIDE)
        emotion = only(found, metric="emotion/accuracy")
        assert (emotion["paper's"], emotion["difference"], emotion["inside ours"]) == ("78.0", "-3.0", "yes")
        perplexity = only(found, metric="perplexity/wikitext")
        assert (perplexity["ours"], perplexity["paper's"], perplexity["difference"]) == (
            "7.000",
            "6.966",
            "+0.034",
        )

    def test_averages_by_one_rule(self, tmp_path):
        # SuperGLUE: eight tasks, those with two metrics averaged first
        metrics = {
            "boolq": {"accuracy": 80}, "cb": {"f1_macro": 70, "accuracy": 80}, "copa": {"accuracy": 60},
            "multirc": {"f1a": 50, "em": 10}, "record": {"f1": 40, "em": 30}, "rte": {"accuracy": 75},
            "wic": {"accuracy": 65}, "wsc": {"accuracy": 55},
        }  # fmt: skip
        for task, values in metrics.items():
            write_run(
                tmp_path, "ppo", task=task, model=LLAMA, metrics={k: v / 100 for k, v in values.items()}
            )
        expected = Expected(printed=(load("a_table_10"),))
        table = build_table(collect(tmp_path, "demo"), expected=expected)
        (average,) = table.averages
        assert average.ours == pytest.approx(fmean([80, 75, 60, 30, 35, 75, 65, 55]))
        assert average.theirs == pytest.approx(626.85 / 8)  # the printed row, added up by hand
        assert average.as_printed == 78.3
        assert average.difference is None  # of the test split
        assert only(cells_of(table, "Averages, by one rule for both"), method="ppo")["columns"] == "11 of 11"

    def test_no_average_without_all_columns(self, tmp_path):
        llama_run(tmp_path, "ppo", "rte", 81.0)
        expected = Expected(printed=(load("a_table_9"),))
        table = build_table(collect(tmp_path, "demo"), expected=expected)
        (average,) = averages(metric_lines(table.rows, expected), expected)
        assert average.ours is None
        assert average.theirs == pytest.approx(85.126)
        assert len(average.missing) == 9
        assert only(cells_of(table, "Averages, by one rule for both"))["ours"] == "-"

    def test_numbers_of_a_run_are_not_percent_twice(self, tmp_path):
        folder = llama_run(tmp_path, "ppo", "rte", 81.0)
        assert json.loads((folder / "result.json").read_text())["metrics"]["accuracy"] == 0.81
        (run,) = collect(tmp_path, "demo").runs
        assert dict(run.headline.metrics) == {"accuracy": 81.0}
