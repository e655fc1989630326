"""Python files run one after another as `python FILE` would, each in a process of its own that is forked from one in
which torch and dslc are imported already (which takes seconds, each time anew).

    with ForkedRuns() as runs:
        code, out, err = runs.run(file, folder)
"""

import os
import runpy
import subprocess
import sys


class ForkedRuns:
    def __enter__(self):
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        return self

    def __exit__(self, *error):
        self._process.stdin.close()
        assert self._process.wait(30) == 0

    def run(self, path, folder):
        """(exit code, what it printed, what it printed to the standard error); `folder` is its working directory."""
        self._process.stdin.write(f"{path}\t{folder}\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        return code, (folder / "printed").read_text("utf-8"), (folder / "said").read_text("utf-8")


def import_all():
    """What a program imports on its way, by running one."""
    import dslc

    @dslc.function
    def program(s):
        s += dslc.user("?") + dslc.assistant(dslc.gen("a", regex="[ab]") + dslc.select("b", ["x", "y"]))

    with dslc.Engine() as engine:
        program.run(backend=engine)


def main():
    import_all()
    for line in sys.stdin:
        path, folder = line.rstrip("\n").split("\t")
        child = os.fork()
        if child == 0:
            os.chdir(folder)
            for number, name in ((1, "printed"), (2, "said")):
                os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            runpy.run_path(path, run_name="__main__")
            return  # and end as a process does
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
