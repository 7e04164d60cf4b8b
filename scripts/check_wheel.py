"""Check that the wheel holds every file of the package, and nothing beside it.

Usage: python scripts/check_wheel.py DIST
"""

import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Compare file lists; exit with status 1 and say what differs."""
    wheels = sorted(Path(sys.argv[1]).glob("*.whl"))
    if len(wheels) != 1:
        sys.exit(f"expected one wheel in {sys.argv[1]}, found {len(wheels)}")
    names = zipfile.ZipFile(wheels[0]).namelist()
    shipped = {n for n in names if ".dist-info/" not in n}
    source = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "xpbayes").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    missing, extra = sorted(source - shipped), sorted(shipped - source)
    if missing or extra:
        sys.exit(f"{wheels[0].name}: missing {missing}, not in the source {extra}")
    for licence in ("LICENSE", "NOTICE"):
        if not any(n.endswith(licence) for n in names):
            sys.exit(f"{wheels[0].name}: {licence} is missing")
    print(f"{wheels[0].name}: {len(shipped)} files, complete")


if __name__ == "__main__":
    main()
