"""Simulation-based calibration of every kind of posterior, as `xpbayes check` does it, with the shares kept.

Usage: python benchmarks/sbc.py MODEL OUT [--stars 5000] [--nuts 500] [--like STARS.parquet] [--seed 0]
"""

import argparse
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from xpbayes.analysis.pages.calibration_page import print_check
from xpbayes.progress import progress_shown
from xpbayes.runs.check import check


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("out")
    parser.add_argument("--stars", type=int, default=5000)
    parser.add_argument("--nuts", type=int, default=500)
    parser.add_argument("--like")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with progress_shown():
        result = check(
            arguments.model, arguments.like, arguments.out, arguments.stars, arguments.nuts, seed=arguments.seed
        )
    print_check(result)
    print(f"{result.seconds:.0f} s; importance and NUTS inside the band: {result.passed}")


if __name__ == "__main__":
    main()
