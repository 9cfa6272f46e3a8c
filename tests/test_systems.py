"""Systems that are not Linux: nothing is imported, and no default used, that only Unix has."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# What Windows lacks; PyTorch and transformers, which ask which system it is, are loaded before.
MODULES = ["fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog"]
NAMES = """
    sysconf fork forkpty register_at_fork getuid geteuid getgid getegid fchmod fchown chown lchown
    sched_getaffinity sched_setaffinity killpg setsid getpgid mkfifo mknod statvfs fstatvfs
    getloadavg O_DIRECTORY O_NOFOLLOW O_NONBLOCK O_SYNC
""".split()
SIGNALS = "SIGHUP SIGKILL SIGQUIT SIGUSR1 SIGUSR2 SIGALRM SIGTSTP SIGCONT SIGCHLD SIGPIPE".split()
PROGRAM = f"""
import importlib, os, pkgutil, signal, sys, warnings
from transformers import AttentionInterface, AutoModelForCausalLM, Qwen2ForCausalLM
for name in [each for each in sys.modules if each.startswith(("filelock", "psutil"))]:
    del sys.modules[name]
warnings.filterwarnings("ignore", "only soft file lock")  # of filelock: there is no other here
for name in {MODULES}: sys.modules[name] = None
for name in {NAMES}: hasattr(os, name) and delattr(os, name)
for name in {SIGNALS}: delattr(signal, name)
os.O_BINARY = 0

import marco_fast
for each in pkgutil.walk_packages(marco_fast.__path__, "marco_fast."):
    if not each.name.startswith(("marco_fast.kernels", "marco_fast.__main__")):
        importlib.import_module(each.name)

from marco_fast.cli import main
from marco_fast.data.journal import FORMAT, Journal
from pathlib import Path
with Journal(Path("x.journal"), FORMAT, restart=False):
    try:
        Journal(Path("x.journal"), FORMAT, restart=False)
        sys.exit("two runs at once")
    except ValueError:
        pass
line = b'{{"question": "How many times does the letter r occur in tree?"}}\\r\\n'
Path("q.jsonl").write_bytes(line)
question = "How many times does the letter r occur in strawberry?"
Path("t.json").touch()
codes = [
    main(["solve", question, "--expansions", "2", "--quiet", "--save", "t.json"]),
    main(["tree", "t.json", "--html", "t.html"]),
    main(["generate-data", "q.jsonl", "--out", "d.jsonl", "--expansions", "2"]),
    main(["info"]),
]
assert b"\\r" not in Path("t.html").read_bytes() + Path("d.jsonl").read_bytes()
print(codes, sorted(os.listdir()))
"""


def test_all_works_without_what_only_unix_has(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    files = "['d.jsonl', 'q.jsonl', 't.html', 't.json', 'x.journal']"
    assert done.stdout.splitlines()[-1:] == [f"[0, 0, 0, 0] {files}"], done.stderr[-3000:]
