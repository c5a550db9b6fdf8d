"""What the environment holds is nobody's business; files are as readable as the umask says."""

import os
import signal

import pytest
from runs import QUICK, pocket_rows, run, write_rows

CANARY = "canary-5f1d0c"
NAMES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "MY_TOKEN")
SECRETS = {name: f"{CANARY}-{name}" for name in NAMES}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("data"), *pocket_rows(24, 8))


def failing():
    import train

    def step(*_):
        raise ValueError("it does not work")

    train.optimizer_step = step


def stopping():
    import train

    real = train.update

    def update(*given):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*given)

    train.update = update


@pytest.mark.parametrize("loss", ["dpo", "ppo"])
@pytest.mark.parametrize("before", [None, failing, stopping], ids=["ends", "fails", "stops"])
def test_no_byte_of_a_secret_is_written_or_shown(data, tmp_path, loss, before):
    out = tmp_path / "out"
    source = ("--data", data) if loss == "dpo" else ("--rollout_size", 16)
    done = run("--loss", loss, *source, "--output_dir", out, *QUICK, before=before, env=SECRETS)
    assert (done.code == 0) == (before is None)
    assert CANARY not in done.out + done.err
    files = [file for file in out.rglob("*") if file.is_file()]
    assert len(files) >= 5
    for file in files:
        assert CANARY.encode() not in file.read_bytes(), file


@pytest.mark.parametrize("mask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_are_as_readable_as_the_umask_says(data, tmp_path, mask, mode):
    """Those of final/ and of checkpoints too: some libraries write for the owner alone."""
    out = tmp_path / "out"
    flags = ("--loss", "dpo", "--data", data, "--output_dir", out, *QUICK, "--save_every", 2)
    done = run(*flags, before={0o022: usual, 0o077: private, 0o002: shared}[mask])
    assert done.code == 0, done.err
    wrong = {
        str(file.relative_to(out)): oct(file.stat().st_mode & 0o777)
        for file in out.rglob("*")
        if file.is_file() and file.name != "run.lock" and file.stat().st_mode & 0o777 != mode
    }
    assert not wrong


def usual():
    os.umask(0o022)


def private():
    os.umask(0o077)


def shared():
    os.umask(0o002)
