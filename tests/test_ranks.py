"""Two-process runs end: those that are done by themselves, and one that stands still by force."""

import gc
import sys
import weakref

import psutil
import pytest
from ranks import finish, run_on_two_ranks
from runs import ROOT, run

STALL = """
import os, sys, time
from pathlib import Path

def stand_still():
    Path(sys.argv[1], os.environ["RANK"]).touch()
    time.sleep(10**6)  # here

stand_still()
"""


def test_two_ranks_that_stand_still_are_ended_and_say_where(tmp_path):
    script = tmp_path / "stall.py"
    script.write_text(STALL)
    for timeout in (3, 10, 30, 90):  # torchrun takes seconds to start a rank, on a busy machine
        with pytest.raises(AssertionError, match=f"was not done in {timeout} s") as error:
            run_on_two_ranks(script, tmp_path, timeout)
        assert not alive(script)
        if all((tmp_path / rank).exists() for rank in "01"):
            break
    line = STALL.splitlines().index("    time.sleep(10**6)  # here") + 1
    assert str(error.value).count(f'File "{script}", line {line} in stand_still') == 2


def alive(script):
    """The processes that were started with this script; one that has ended has no command line."""
    found = psutil.process_iter(["cmdline"])
    return [process for process in found if str(script) in (process.info["cmdline"] or [])]


def test_a_rank_that_fails_says_why(tmp_path):
    script = tmp_path / "fail.py"
    script.write_text("import os\nassert os.environ['RANK'] == '0', 'rank 1 fails'\n")
    with pytest.raises(AssertionError, match="rank 1 fails"):
        run_on_two_ranks(script, tmp_path)


@pytest.mark.parametrize("how", ["launch", "failing launch", "run_rank"])
def test_the_process_group_outlives_ddp(how):
    """Otherwise a round in about fifty stands still: 100 rounds of one process."""
    done = finish([sys.executable, ROOT / "tests" / "teardown.py", how, 100], timeout=180)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("loss", ["sft", "ppo"])
def test_train_leaves_no_reference_to_ddp(tmp_path, loss):
    """A cycle around DDP would keep it longer than `launch` owns the group."""
    flags = ["--loss", loss, "--max_steps", 1, "--batch_size", 8, "--output_dir", tmp_path / "out"]
    done = run(*flags, before=as_one_of_several)
    assert done.code == 0, done.err
    assert done.out.endswith("freed: DDP, group\n")


def as_one_of_several():
    """One process with a process group and DDP, which prints what of them is freed by a run."""
    from accelerate import Accelerator
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    import train

    store, freed = distributed.HashStore(), []
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)

    def prepare_model(self, model, evaluation_mode=False, **_):
        if evaluation_mode:
            return model
        policy = DistributedDataParallel(model)
        self._models.append(policy)
        weakref.finalize(policy.reducer, freed.append, "DDP")
        weakref.finalize(distributed.group.WORLD, freed.append, "group")
        return policy

    def launch(*args, launch=train.launch):
        gc.disable()
        code = launch(*args)
        print("freed:", ", ".join(freed))
        return code

    Accelerator.prepare_model, train.launch = prepare_model, launch
