"""Run pydoclint over the package and print what is wrong by the habits of this house. Its settings are in pyproject.toml.

A docstring may leave out what names and the summary say already, and its Raises also name what comes from below. pydoclint
wants all or nothing; of what it finds, this keeps what would mislead a reader. Args that lack an argument are found by ruff
(D417).
"""

import re
import subprocess
import sys

LEFT_OUT = {"DOC101", "DOC201", "DOC402", "DOC501", "DOC502"}


def is_wrong(line: str) -> bool:
    """Whether a finding says that a docstring is wrong, and not only that it is short."""
    code = re.search(r"DOC\d+", line)
    if code is None or code[0] in LEFT_OUT:
        return False
    if code[0] == "DOC103":
        return "Arguments in the docstring but not in the function signature" in line
    if code[0] == "DOC503":
        documented, raised = (set(re.findall(r"'(?:\w+\.)*(\w+)'", part)) for part in line.split("in the body"))
        # Names in lower case are functions that make the error; what is caught to clean up goes on as it came.
        return any(name[0].isupper() for name in raised - documented - {"BaseException"})
    return True


def main() -> int:
    """Print findings; 1 where there are some, or where pydoclint itself failed."""
    command = [sys.executable, "-m", "pydoclint.main", *(sys.argv[1:] or ["prism_plugin"])]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = (run.stdout + run.stderr).splitlines()
    if run.returncode and not any(re.search(r"DOC\d+", line) for line in lines):
        print("\n".join(lines), file=sys.stderr)
        return run.returncode
    wrong = [line.strip() for line in lines if is_wrong(line)]
    print("\n".join(wrong) if wrong else "docstrings: no findings")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
