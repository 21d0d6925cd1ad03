"""`compare`: finished runs side by side, from their reports alone."""

import logging
from pathlib import Path

from trainer.cli.flags import CommandLine
from trainer.record.predictions import opened
from trainer.report.comparison import FORMS, compare_pairs, terminal
from trainer.report.scored import find_reports
from trainer.values import UsageError

_log = logging.getLogger("trainer")


def run(line: CommandLine) -> int:
    """Prints the table of the runs that the paths name, writes --output, and returns the exit status."""
    output = line.config.benchmark.output
    ending = Path(output).suffix.lower()
    if output and ending not in FORMS:
        raise UsageError(f"--output={output} must end in {', '.join(FORMS)}: that is how it is written")
    reports = find_reports(line.paths, split=line.given.get("eval_split", ""))
    pairs = compare_pairs(reports)
    print(terminal(reports, pairs), end="")
    if output:
        with opened(output) as write:
            write(FORMS[ending](reports, pairs))
        _log.info("written:     %s", output)
    return 0
