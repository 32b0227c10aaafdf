"""What compare works out, tried without measuring anything: python3 -B tools/compare.d/tests.py"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.machinery
import importlib.util
import io
import os
import pathlib
import signal
import subprocess
import sys
import unittest

sys.dont_write_bytecode = True
HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import profile
import report
import syscalls
from measure import Run, kill_all, tree, undisturbed
from report import Row, Stage
from system import Facts


def program():
    """tools/compare, whose name says nothing of Python."""
    loader = importlib.machinery.SourceFileLoader("compare", str(HERE.parent / "compare"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("compare", loader))
    loader.exec_module(module)
    return module


compare = program()
PUT = Stage("put", "put", "bytes", 128, True)
PIPED = Stage("piped_put", "pipes", "bytes", 128, True)


def row(system: str, *seconds: float | None, stage: Stage = PUT, is_limit: bool = False, limit: str = "",
        amount: int = 128) -> Row:
    runs = [Run(each, each / 2, amount) if each else None for each in seconds]
    return Row(stage, system, is_limit, limit, Facts("no", "no", "no", "-"), runs)


def said(*rows: Row) -> dict:
    return report.as_json(list(rows), ["here"], {}, {})


class Middle(unittest.TestCase):
    def test_of_an_odd_number_it_is_the_middle(self) -> None:
        self.assertEqual(row("gabion", 3, 1, 2).middle().seconds, 2)

    def test_of_an_even_number_it_is_the_slower_and_the_faster_of_others(self) -> None:
        self.assertEqual(row("gabion", 1, 4, 2, 3).middle().seconds, 3)
        self.assertEqual(row("gabion", 1, None, 2).middle().seconds, 2)
        self.assertEqual(row("scp", 1, None, 2).middle().seconds, 1)

    def test_the_slower_takes_longer_for_the_same_amount(self) -> None:
        both = row("gabion", 1, 4)
        both.runs[1] = Run(4, 0, 1000)
        self.assertEqual(both.middle().seconds, 1)


class Profiles(unittest.TestCase):
    def test_a_row_without_a_run_has_no_line_and_breaks_nothing(self) -> None:
        failed, done = row("gabion", None), row("gabion", 2, stage=PIPED)
        failed.cpu_shares, done.cpu_shares = {"hashing": 1.0}, {"hashing": 0.25, "the rest": 0.75}
        text = report.markdown([failed, done], ["here"], {}, {}, False)
        self.assertIn("| 25.0% | 75.0% |", text)
        self.assertNotIn("100.0%", text)


class Times(unittest.TestCase):
    def test_ratios_are_taken_inside_each_round(self) -> None:
        self.assertEqual(row("gabion", 2, 30, 8).times(row("fio", 1, 10, 2), report.its_seconds), (3, 2, 4))

    def test_a_round_that_failed_on_either_side_does_not_count(self) -> None:
        self.assertEqual(row("gabion", 2, None, 8, 9).times(row("fio", 1, 10, None, 3), report.its_seconds), (3, 2, 3))
        self.assertIsNone(row("gabion", None, 1).times(row("fio", 1, None), report.its_seconds))
        self.assertIsNone(row("gabion", 1).times(None, report.its_seconds))

    def test_amounts_may_differ(self) -> None:
        self.assertEqual(row("gabion", 2).times(row("fio", 2, amount=256), report.its_seconds), (2, 2, 2))

    def test_of_two_middle_ones_it_is_what_speaks_less_for_gabion(self) -> None:
        self.assertEqual(row("gabion", 2, 3).times(row("fio", 1, 1), report.its_seconds), (3, 2, 3))
        self.assertEqual(row("scp", 2, 3).times(row("fio", 1, 1), report.its_seconds), (2, 2, 3))
        self.assertEqual(row("scp", 2, 3).times(row("gabion", 1, 1), report.its_seconds), (2, 2, 3))


class Merge(unittest.TestCase):
    def test_rounds_follow_each_other(self) -> None:
        rows, about, absent, failed = report.merge([said(row("gabion", 1, None)), said(row("gabion", 3))])
        self.assertEqual([run and run.seconds for run in rows[0].runs], [1, None, 3])
        self.assertEqual((about, absent, failed), (["here"], {}, {}))

    def test_who_comes_later_has_no_runs_of_earlier_rounds(self) -> None:
        rows, *_ = report.merge([said(row("gabion", 1, 2)), said(row("gabion", 3), row("scp", 4))])
        self.assertEqual([run and run.seconds for run in rows[1].runs], [None, None, 4])

    def test_different_sizes_are_refused(self) -> None:
        other = dataclasses.replace(PUT, amount=256)
        with self.assertRaisesRegex(ValueError, "128 bytes.*256 bytes"):
            report.merge([said(row("gabion", 1)), said(row("gabion", 1, stage=other))])


class Flatness(unittest.TestCase):
    def test_it_is_that_of_complete_rounds_beside_that_of_the_disk(self) -> None:
        rows = [row("fio, 1 GiB", 1, 1, is_limit=True, stage=PIPED), row("fio, 4 GiB", 2, 1, is_limit=True, stage=PIPED),
                row("gabion, 1 GiB", 1, 1, limit="fio, 1 GiB", stage=PIPED),
                row("gabion, 4 GiB", 4, None, limit="fio, 4 GiB", stage=PIPED)]
        own, _, disk, _ = report.flatness(PIPED, rows)
        self.assertIn("these lengths has 4.00 times", own)
        self.assertIn("on the disk alone has 2.00 times", disk)
        self.assertEqual(report.flatness(PUT, rows), [])

    def test_of_two_rounds_it_is_the_larger(self) -> None:
        rounds = [(Run(1, 0, 1), Run(2, 0, 1)), (Run(1, 0, 1), Run(3, 0, 1))]
        self.assertEqual(report.rates_apart(rounds), (3, 2, 3))
        self.assertIsNone(report.rates_apart([(Run(1, 0, 1),)]))


class Table(unittest.TestCase):
    def test_what_was_kept_is_in_the_brief_one_too(self) -> None:
        one = row("gabion", 1)
        one.runs[0].remark = "40% of it kept"
        for is_brief in (False, True):
            self.assertIn("MiB/s (40% of it kept)", report.markdown([one], [], {}, {}, is_brief))

    def test_the_chart_knows_gabion_by_every_name(self) -> None:
        drawn = report.chart([row("gabion, 1 GiB", 1), row("scp", 1)], ["here"])
        # Once in the legend.
        self.assertEqual([drawn.count(colour) for colour in report.COLOURS.values()], [1, 2, 2])


class Profile(unittest.TestCase):
    def test_groups_share_all_of_it(self) -> None:
        found = profile.shares([
            ("[.] _blake3_hash_many_avx512", 3), ("[.] aes::backends::x86_vaes512::Aes<_>::encrypt", 2),
            ("[.] crossbeam_skiplist::base::SkipList<K,V>::search_position", 1), ("[.] _rjem_malloc", 1),
            ("[k] exc_page_fault", 1), ("[k] _copy_to_iter", 2), ("[.] __memmove_avx512_unaligned_erms", 1),
            ("[k] chacha_block_generic", 1), ("[k] finish_task_switch.isra.0", 2), ("[.] gabion::node::run", 2)])
        self.assertEqual(list(found.values()), [share / 16 for share in (3, 2, 1, 1, 1, 3, 3, 2)])


class Syscalls(unittest.TestCase):
    def test_perf_and_strace_are_understood(self) -> None:
        self.assertEqual(syscalls.total("1234,,raw_syscalls:sys_enter,5678,100.00,,\n"), 1234)
        self.assertEqual(syscalls.total(" 60.00    0.000003           1         3           read\n"
                                        "------ ----------- ----------- --------- --------- ----------------\n"
                                        "100.00    0.000005           0        42         7 total\n"), 42)
        self.assertEqual(syscalls.total("<not supported>,,raw_syscalls:sys_enter,0,100.00,,\n"), 0)


class Arguments(unittest.TestCase):
    def test_sizes(self) -> None:
        self.assertEqual(compare.sizes("1M, 2g,1048577"), [1 << 20, 2 << 30, 1048577])
        for text in ("", "M", "1000", "512K", "-1G", "1.5G", "many"):
            with self.assertRaises(argparse.ArgumentTypeError, msg=text):
                compare.size(text)

    def test_stages_by_name_and_by_how_they_begin(self) -> None:
        self.assertEqual(compare.words("Tree-Put, wire,"), ["tree_put", "wire"])
        for stage, only in (("put", []), ("get_cold", ["get"]), ("get_cold", ["get_cold"])):
            self.assertTrue(compare.is_asked_for(stage, only))
        self.assertFalse(compare.is_asked_for("tree_put", ["put"]))

    def test_unknown_names_are_refused(self) -> None:
        with contextlib.redirect_stderr(io.StringIO()) as said, self.assertRaises(SystemExit) as refused:
            compare.refuse_unknown("--systems", ["gab", "nobody"], ["gabion", "scp"], compare.begins)
        self.assertEqual((refused.exception.code, said.getvalue()),
                         (2, "compare: --systems nobody: there is only gabion; scp\n"))


class Endings(unittest.TestCase):
    def test_a_signal_is_heard_when_the_work_is_over(self) -> None:
        heard: list[int] = []
        before = signal.signal(signal.SIGHUP, lambda number, _: heard.append(number))
        try:
            with undisturbed():
                with undisturbed():
                    os.kill(os.getpid(), signal.SIGHUP)
                self.assertEqual(heard, [])
            self.assertEqual(heard, [signal.SIGHUP])
        finally:
            signal.signal(signal.SIGHUP, before)

    def test_descendants_in_other_sessions_are_killed_too(self) -> None:
        script = ("import subprocess; child = subprocess.Popen(['sleep', '60'], start_new_session=True); "
                  "print(child.pid, flush=True); child.wait()")
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
            child = int(parent.stdout.readline())
            self.assertIn(child, tree(parent.pid))
            kill_all(parent.pid)
            # The pipe is open for as long as either lives.
            self.assertEqual(parent.stdout.read(), "")


if __name__ == "__main__":
    unittest.main()
