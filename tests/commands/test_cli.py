import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import torchrun

from dit import __version__, cli
from dit.cli import main, parse
from dit.config import (
    ClassifierConfig,
    EmaConfig,
    EvalConfig,
    SampleConfig,
    ShowConfig,
    SweepConfig,
    TrainConfig,
)
from dit.config.parse import _unframe
from dit.config.presets import PRESETS
from dit.distributed.ranks import Ranks
from dit.errors import UserError, UserErrors
from dit.training.resilience.preemption import stop_on_signals
from dit.utils.files import command_line
from dit.utils.typed_json import from_json

ROOT = Path(__file__).parents[2]


def error_of(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr of a command that fails as a user's mistake."""
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize(
    ("command", "part"),
    [
        # unknown names
        ("trian", "unknown command 'trian'; expected train | "),
        ("trian", "did you mean train"),
        ("plan --gpus 8", "; dit plan is now dit train --dry-run --gpus N"),
        ("verify runs/x", "; dit verify is now dit info"),
        (
            "train --modle DiT-S/4",
            "unknown flag --modle; expected a flag of dit train; did you mea",
        ),
        (
            "train --foo 3",
            "unknown flag --foo; expected a flag of dit train; see dit train --help-all",
        ),
        ("sample --cfg 3", "did you mean --cfg-scale or --cfg-interval or --cfg-channels?"),
        ("train --preset imagenet-265", "unknown preset 'imagenet-265'"),
        ("train --preset imagenet-265", "did you mean imagenet-256"),
        # values that do not fit the type
        ("train --lr fast", "--lr fast; expected a number; change --lr, or see dit train --help"),
        ("train --lr", "--lr without a value; expected a number"),
        ("train --out", "--out without a value; expected a path"),
        ("train --resume --steps=9", "--resume without a value; expected a value"),
        ("train --steps=1e3", "--steps 1e3; expected a whole number"),
        ("train --num-classes 1.5", "--num-classes 1.5; expected a whole number"),
        ("train --unet-attention a 8", "--unet-attention a 8; expected one whole number or more"),
        ("train --process floww", "--process floww; expected one of flow, linear, cosine"),
        ("train --conditioning token", "tokens, text; did you mean tokens?"),
        ("train --time-shift automatic", "--time-shift automatic; expected a number or auto;"),
        ("train --process", "without a value; expected one of flow, linear, cosine; change --pro"),
        ("sample --run r --cfg-interval 0.1", "--cfg-interval 0.1; expected two numbers"),
        ("train --image-size 30 48 20", "--image-size 30 48 20; expected one number, or two: heig"),
        ("train --image-size", "--image-size without a value; expected one number"),
        ("train --lr -1", "--lr -1; expected a number above 0"),
        ("train word", "word"),
        ("train foo--lr", "Unrecognized options: foo--lr; expected flags and values"),
        ("train --steps 5 -x--seed", "Unrecognized options: -x--seed; expected flags and values"),
        ("info --path nowhere", "nothing at nowhere"),
        ("show --run x", "of dit show are missing; expected dit show DIRECTION RUN; see dit show"),
        ("sample nowhere", "no checkpoint in nowhere, which is not there"),
        # missing arguments
        ("sample", "of dit sample are missing; expected dit sample --run RUN; see dit sample --h"),
        ("show --steps 4 forward", "expected dit show DIRECTION RUN; see dit show --help"),
        ("ema", "expected dit ema RUN --ema-lengths LENGTH; see dit ema --help"),
        # networks of another task
        ("train --model Classifier-S/2", "is a classifier; expected a network that draws images"),
        ("train --model Classifier-S/2 --label-dropout 0", "is a classifier; expected a network"),
        # flags that nothing would read
        (
            "train --process linear --time-sampling logit-normal",
            "--time-sampling logit-normal with --process linear",
        ),
        (
            "train --process cosine --time-shift=3",
            "--time-shift 3 with --process cosine; expected --process flow",
        ),
        (
            "train --model UNet-S --conditioning adaln-zero",
            "--conditioning adaln-zero with --model UNet-S",
        ),
        ("train --num-classes 0 --label_dropout 0.2", "--label-dropout 0.2 with --num-classes 0"),
        ("train --epochs 3 --steps 9", "--steps 9 with --epochs 3; expected no --epochs"),
        ("train --on-divergence stop --max-skips 3", "--max-skips 3 with --on-divergence stop"),
        ("train --eval-samples 9", "--eval-samples 9 without --eval-every"),
        ("train --ema-lengths", "--ema-lengths without a value"),
        (
            "train --process linear --learn-sigma --process flow",
            "--process flow with --learn-sigma",
        ),
        # what is on the disk
        ("train --dry-run --image-size 36", "36 with DiT-Ti/2 on --vae digits; expected a multip"),
        ("train --resume nowhere", "--resume nowhere: no checkpoint there"),
        ("sample --run nowhere", "no checkpoint in nowhere, which is not there"),
        (f"sample --run {ROOT}/dit/assets/digits-vae", "which has the config.json of another netw"),
        ("info nowhere", "nothing at nowhere"),
    ],
)
def test_mistakes_get_one_line(command: str, part: str, capsys: pytest.CaptureFixture[str]):
    assert part in error_of(command.split(), capsys)


@pytest.mark.parametrize(
    ("argv", "flag"),
    [
        (["info", ""], "an argument"),
        (["train", "--vae", " "], "--vae"),
        (["train", "--resume", "auto", "--out=", "--steps", "9"], "--out"),
        (["evaluate", "--weights", "a", ""], "--weights"),
    ],
)
def test_an_empty_value_is_refused(argv: list[str], flag: str, capsys: pytest.CaptureFixture[str]):
    assert f"error: {flag} is empty; expected a value" in error_of(argv, capsys)


def test_a_negative_prompt_may_be_empty():
    given = parse(SampleConfig, ["--run", "r", "--negative-prompt", ""], "sample.py")
    assert given.negative_prompt == ""


@pytest.mark.parametrize(
    "box",
    [
        "╭─ Value error ─╮\n│ Error parsing --lr: no number. │\n│ ───── │\n│ For help … │\n╰─────╯",
        " Value error \n ----- \n  Error parsing --lr: no number. \n  ----- \n  For help … \n",
    ],
)
def test_an_error_of_the_parser_is_one_line_with_and_without_a_frame(box: str):
    assert _unframe(box) == "--lr: no number"


def test_an_unknown_model_names_the_nearest(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    argv = ["train", "--model", "DiT-S/3", "--out", str(tmp_path / "run"), "--vae", "identity"]
    error = error_of(argv, capsys)
    assert "unknown model 'DiT-S/3'" in error
    assert "DiT-S/2" in error
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_overview_lists_all_commands(capsys: pytest.CaptureFixture[str]):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for name in cli.COMMANDS:
        assert f"\n  {name} " in out
    assert main([]) == 0


def test_python_m_dit_prints_the_version():
    argv = [sys.executable, "-m", "dit", "--version"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"dit {__version__}\n")


@pytest.mark.parametrize("script", ["train.py", "sample.py", "evaluate.py"])
def test_scripts_answer_help_at_once(script: str):
    code = (
        "import runpy, sys; sys.argv = [sys.argv[1], '--help']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally: print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert f"usage: {script}" in done.stdout
    assert done.stdout.endswith("False\n"), "importing torch takes seconds"


def test_script_exit_code(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", "--steps", "0"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --steps 0; expected a number above 0; change --steps\n"


# -- flags to configurations -----------------------------------------------------------------------


@pytest.mark.parametrize("argv", ["--help", "sample --help", "info {run}"])
@pytest.mark.parametrize("reader", ["closed", "full"])
def test_an_output_that_takes_nothing_ends_without_a_traceback(argv, reader, tiny_run: Path):
    reading, writing = os.pipe()
    os.close(reading)
    with open("/dev/full", "w") if reader == "full" else os.fdopen(writing, "w") as out:
        command = [sys.executable, "-m", "dit", *argv.format(run=tiny_run).split()]
        done = subprocess.run(command, cwd=ROOT, stdout=out, stderr=subprocess.PIPE, text=True)
    if reader == "closed":
        assert (done.returncode, done.stderr) == (1, "")
    else:
        line = "error: the output: No space left on device; expected a disk with free space; "
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert done.stderr.startswith(line)


@pytest.mark.parametrize(
    "locale", [dict(PYTHONIOENCODING="ascii"), dict(LC_ALL="C", PYTHONCOERCECLOCALE="0")]
)
def test_a_terminal_without_a_character_shows_its_code(locale: dict[str, str]):
    done = subprocess.run(
        [sys.executable, "-m", "dit", "caf\u00e9"],
        cwd=ROOT,
        env={**os.environ, "PYTHONUTF8": "0", **locale},
        capture_output=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: unknown command 'caf\\")
    assert done.stderr.count(b"\n") == 1


def test_flags_become_a_configuration():
    argv = "--model DiT-S/4 --lr 1e-3 --no-flip --resume auto --out runs/x --num-classes=7"
    given = parse(TrainConfig, [*argv.split(), "--global_batch_size", "8"], "train.py")
    assert given == TrainConfig(
        model="DiT-S/4",
        lr=1e-3,
        flip=False,
        resume="auto",
        out=Path("runs/x"),
        num_classes=7,
        global_batch_size=8,
    )
    assert type(given) is TrainConfig
    argv = "--run r --cfg-scale 2 --cfg-interval 0.1 0.8 --classes 0,1,2"
    sampled = parse(SampleConfig, argv.split(), "sample.py")
    assert sampled == SampleConfig(
        run=Path("r"), cfg_scale=2.0, cfg_interval=(0.1, 0.8), classes=("0,1,2",)
    )
    assert parse(EvalConfig, [], "evaluate.py") == EvalConfig()


# photos follows the images: tests/latents/test_first_stage.py
@pytest.mark.parametrize("name", [name for name in PRESETS if name != "photos"])
def test_preset_gives_the_defaults(name: str):
    assert parse(TrainConfig, ["--preset", name], "train.py") == PRESETS[name]()
    changed = parse(TrainConfig, [f"--preset={name}", "--steps", "7"], "train.py")
    assert changed.steps == 7
    assert changed.model == PRESETS[name]().model


def test_resume_takes_the_settings_of_the_run(make_run):
    home = make_run(lr=0.5, steps=9)
    again = parse(TrainConfig, ["--resume", str(home), "--log-every", "3"], "train.py")
    saved = json.loads((home / "config.json").read_text())["config"]
    # intervals may follow from another length: they are decided later
    assert again == from_json(
        TrainConfig,
        {
            **saved,
            "resume": str(home),
            "out": str(home),
            "log_every": 3,
            "sample_every": None,
            "ckpt_every": None,
        },
    )
    assert (again.lr, again.steps) == (0.5, 9)


INCOMPLETE = [
    "train --resume {run}",
    "train --vae identity --image-size 8 --model DiT-Ti/4 --out {run} --resume auto",
    "train --vae identity --image-size 8 --model DiT-Ti/4 --out {run}",
    "sample --run {run}",
]


@pytest.mark.parametrize("command", INCOMPLETE)
def test_a_run_without_a_complete_checkpoint_does_not_start_again(command, make_run, capsys):
    run = make_run()
    next(run.glob("checkpoints/*/meta.json")).unlink()
    before = sorted(run.rglob("*"))
    said = error_of(command.format(run=run).split(), capsys)
    assert f"no checkpoint in {run} is complete: step-0000003 without meta.json" in said
    assert f"copy it again; to start from step 0, move {run}/checkpoints away first" in said
    assert sorted(run.rglob("*")) == before


def test_resume_without_a_checkpoint(make_run):
    run = make_run()
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UserError, match="no checkpoint there"):
        parse(TrainConfig, ["--resume", str(run)], "train.py")


# -- how a command ends ----------------------------------------------------------------------------


@pytest.mark.parametrize(("joined", "ended"), [(True, [2]), (False, [])])
def test_after_an_error_a_rank_ends_without_the_teardown_of_python(joined, ended, monkeypatch):
    """Which would abort while gloo's threads still release tensors."""
    codes = []
    monkeypatch.setattr("atexit._run_exitfuncs", lambda: None)
    monkeypatch.setattr("os._exit", codes.append)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: joined)
    assert main(["info", "nowhere"]) == 2
    assert codes == ended
    assert main(["--version"]) == 0
    assert codes == ended


def ending(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int:
    def work(config: object, ranks: object) -> None:
        raise error

    monkeypatch.setattr("dit.commands.train.train", work)
    return main(["train"])


def test_interrupted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    assert ending(monkeypatch, KeyboardInterrupt()) == 130
    assert capsys.readouterr().err.strip() == "interrupted"


def test_a_dropped_interrupt_still_stops_training(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def work(config: object, ranks: Ranks) -> None:
        with suppress(KeyboardInterrupt):  # as a __del__ does
            signal.raise_signal(signal.SIGINT)
        with stop_on_signals(ranks) as stop:
            asked.append(stop.now())

    monkeypatch.setattr("dit.commands.train.train", work)
    # a shell starts background work with it ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for _ in range(2):
        assert main(["train"]) == 0
    assert asked == [True, True]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, "a disk with free space; free some space, or"),
        (errno.EFBIG, "a file below the limit of the system; see `ulimit -f`, or"),
        (errno.EACCES, "a path with the right to it; change its rights, or"),
        (errno.EISDIR, "a file where one belongs"),
        (errno.EIO, "an intact disk; check the disk, or"),
        (errno.ENOENT, "a file that stays while the command runs"),
    ],
)
def test_errors_of_the_file_system_are_one_line(
    number: int, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert ending(monkeypatch, OSError(number, os.strerror(number), "/x/caf\udce9")) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: /x/caf\\xe9: {os.strerror(number)}; expected {expected}")
    assert error.endswith("or choose another path\n")


def test_a_disk_without_room_for_temporary_files(monkeypatch, capsys):
    error = FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")
    assert ending(monkeypatch, error) == 2
    assert "set TMPDIR to a folder on another disk" in capsys.readouterr().err


def test_names_that_are_too_long(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    for flags in (["--vae", "identity", "--out"], ["--resume"]):
        argv = ["train", *flags, f"{tmp_path}/{'x' * 300}"]
        assert "File name too long" in error_of(argv, capsys)


def test_our_own_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ZeroDivisionError):
        ending(monkeypatch, ZeroDivisionError())
    with pytest.raises(FileNotFoundError):
        ending(monkeypatch, FileNotFoundError(2, "no such file"))


@pytest.mark.parametrize(
    "command",
    [
        "evaluate --samples s.npz --reference PIPE",
        "evaluate --samples PIPE",
        "stats --data PIPE --out o.npz",
        "sample --run PIPE",
        "train --resume PIPE",
        "info PIPE",
        "convert PIPE o.safetensors",
        "convert f.pt PIPE",
        "nll --run r --out PIPE",
    ],
)
def test_a_pipe_is_no_file(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pipe = tmp_path / "pipe.npz"
    os.mkfifo(pipe)
    found = error_of(command.replace("PIPE", str(pipe)).split(), capsys)
    assert f"{pipe} is a pipe, a socket or a device; expected a file or a folder" in found
    assert pipe.is_fifo()


def test_other_ranks_wait_before_they_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    waited: list[float] = []
    monkeypatch.setattr(cli, "rank_for_messages", lambda: 1)
    monkeypatch.setattr(cli.time, "sleep", waited.append)
    assert ending(monkeypatch, UserError("a", "b", "c")) == 2
    assert waited == [cli.PATIENCE]
    assert capsys.readouterr().err == "error (rank 1): a; expected b; c\n"


@pytest.mark.slow
def test_scoring_and_encoding_under_torchrun(tiny_run, tmp_path):
    out = tmp_path / "scores"
    flags = ["--num-samples", 20, "--steps", 2, "--bootstrap", 0, "--out", out]
    torchrun("evaluate.py", "--run", tiny_run, *flags)
    assert json.loads((tmp_path / "scores" / "report.json").read_text())["scores"]
    torchrun("dit.cli", "encode", "--data", "digits", "--out", tmp_path / "latents", module=True)
    assert main(["info", str(tmp_path / "latents")]) == 0


def test_a_pattern_without_quotes_is_recognised(tmp_path, capsys):
    files = [str(tmp_path / f"train-{i}.tar") for i in range(3)]
    for file in files:
        Path(file).touch()
    error = error_of(["encode", "--data", *files, "--out", "x"], capsys)
    assert f"--data with 3 values, {files[0]} to {files[2]}; expected one; put" in error
    assert f"in quotes, such as --data '{tmp_path}/*.tar'" in error


def test_a_path_with_spaces_without_quotes_is_recognised(tmp_path, capsys):
    folder = tmp_path / "my own photos"
    folder.mkdir()
    error = error_of(["train", "--data", *str(folder).split(" ")], capsys)
    assert error.strip().endswith(f"put it in quotes: --data '{folder}'")


@pytest.mark.parametrize(
    ("started", "typed"),
    [
        ("train.py", "python sample.py"),
        ("/opt/dit/train.py", "python /opt/dit/sample.py"),
        ("my code/train.py", "python 'my code/sample.py'"),
        ("/usr/bin/dit", "dit sample"),
    ],
)
def test_the_next_command_is_started_as_this_one(started, typed, monkeypatch):
    monkeypatch.setattr(sys, "argv", [started])
    assert command_line("sample") == typed
    assert command_line("encode") == "dit encode"


@pytest.mark.parametrize(
    ("started", "shown"),
    [
        ("dit", "error: train.py; expected dit train; pass x/train.py to dit sample\n"),
        ("train.py", "error: train.py; expected python train.py; pass x/train.py to sample.py\n"),
    ],
)
def test_advice_names_what_is_there(started, shown, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [started])
    mistake = UserError("train.py", "python train.py", "pass x/train.py to sample.py")
    assert ending(monkeypatch, mistake) == 2
    assert capsys.readouterr().err == shown


def test_all_wrong_flags_are_told_at_once(capsys: pytest.CaptureFixture[str]):
    flags = "--stepps 9 --lr fast --warmup -1 --batch-size 0 --flip yes --dry-run"
    assert main(["train", *flags.split()]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: unknown flag --stepps; expected a flag of dit train; did you mean --steps?",
        "error: --flip yes; expected no value; pass --flip or --no-flip",
        "error: --lr fast; expected a number; change --lr, or see dit train --help",
        "error: --batch-size 0; expected a number above 0; change --batch-size",
        "error: --warmup -1; expected 0 or more; change --warmup",
    ]


def test_what_a_wrong_flag_may_cause_is_not_told_too(capsys: pytest.CaptureFixture[str]):
    # --gpus needs --dry-run
    error = error_of(["train", "--dry-rum", "--gpus", "8"], capsys)
    assert error.startswith("error: unknown flag --dry-rum")
    # --run is required
    assert error_of(["sample", "--runn", "x"], capsys).startswith("error: unknown flag --runn")


def test_several_mistakes_survive_the_way_to_another_rank():
    mistakes = UserErrors([UserError("a", "b", "c"), UserError("d", "e", "")])
    sent = pickle.loads(pickle.dumps(mistakes))
    assert str(sent) == "a; expected b; c\nd; expected e"


# -- one name for one flag -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "flags", "setting", "value"),
    [
        (TrainConfig, "--batch-size 8", "global_batch_size", 8),
        (TrainConfig, "--global-batch-size 8", "global_batch_size", 8),
        (TrainConfig, "--global_batch_size=8", "global_batch_size", 8),
        (ClassifierConfig, "--run r --batch-size 8", "global_batch_size", 8),
        (SweepConfig, "--run r --cfg-interval 0-0.5", "interval", "0-0.5"),
        (SweepConfig, "--run r --interval 0-0.5", "interval", "0-0.5"),
        (SweepConfig, "--run r --ema-lengths 0.1", "ema_length", "0.1"),
        (EmaConfig, "r --ema-lengths 0.1 0.2", "length", (0.1, 0.2)),
        (EmaConfig, "r --length 0.1", "length", (0.1,)),
        (EmaConfig, "--run r --length 0.1", "run", Path("r")),
        (SampleConfig, "r --steps 3", "run", Path("r")),
        (ShowConfig, "forward --run r", "run", Path("r")),
    ],
)
def test_a_flag_has_one_name_and_keeps_its_earlier_one(kind, flags, setting, value):
    assert getattr(parse(kind, flags.split(), "dit"), setting) == value


def test_a_flag_with_another_name_counts_as_typed():
    with pytest.raises(UserError, match="--steps 9 with --epochs 2"):
        parse(TrainConfig, ["--batch-size", "8", "--epochs", "2", "--steps", "9"], "train.py")
