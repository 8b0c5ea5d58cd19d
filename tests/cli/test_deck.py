import signal
import subprocess
import sys
import time
from pathlib import Path

from desat.deck.slides import SLIDES
from tests.cli.test_run import desat


def test_one_slide_is_made_and_then_taken_as_it_is(tmp_path: Path) -> None:
    first = desat("deck", 2, "--fast", "-o", "deck", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert first.stdout == "deck/index.html\n"
    assert " 2  Activation functions  (" in first.stderr
    names = {path.name for path in (tmp_path / "deck").iterdir()}
    assert {"index.html", "02-activations-sigmoid.png", "02-activations-relu.png"} <= names
    assert not [name for name in names if name.startswith("01-")]
    page = (tmp_path / "deck" / "index.html").read_text(encoding="utf-8")
    assert "Tanh is bounded" in page
    assert "Not in this build: not asked for" in page

    again = desat("deck", 2, "--fast", "-o", "deck", cwd=tmp_path)
    assert "(as it was)" in again.stderr
    assert (tmp_path / "deck" / "index.html").read_text(encoding="utf-8") == page


def test_quiet_says_nothing_but_where_the_page_is(tmp_path: Path) -> None:
    done = desat("deck", 2, "--fast", "--quiet", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "desat-deck/index.html\n", "")


def test_a_wrong_call_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    calls = {
        (99,): f"no slide 99: there are {SLIDES[0].number}, ",
        (2, "--data", "nowhere"): "--data nowhere: expected a folder",
        (2, "-o", "mine"): "mine holds something else: choose another folder with -o, or pass --overwrite",
    }
    for arguments, message in calls.items():
        done = desat("deck", "--fast", *arguments, cwd=tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert message in done.stderr
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["mine", "thesis.tex"]


def test_without_matplotlib_it_says_how_to_get_it(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None; from desat.cli import main; sys.argv = ['desat', 'deck']; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr == "desat: the deck is drawn with matplotlib: install it with `pip install 'desat[deck]'`\n"


def test_ctrl_c_keeps_what_is_done(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "desat", "deck", "--fast", "-o", "deck"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        entries = tmp_path / "deck" / ".cache"
        deadline = time.monotonic() + 120
        while not list(entries.glob("*.json")) and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert output == "deck/index.html\n"
    page = (tmp_path / "deck" / "index.html").read_text(encoding="utf-8")
    assert page.count("Not in this build: interrupted") == len(SLIDES) - len(list(entries.glob("*.json"))) > 0
