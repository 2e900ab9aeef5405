import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from two_processes import run_in_two_and_in_one

from genimg_fast.training import RunFolder, load_checkpoint

IN_PROCESSES = """
    import copy, sys, torch, genimg_fast as gf
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
    from genimg_fast.training import GANTrainer, Recipe, fit
    from genimg_fast.training.processes import process_group, rank, world_size

    def count_and_reduce(messages, bucket):
        messages.append(bucket.index())
        return allreduce_hook(None, bucket)

    with process_group(torch.device("cpu")):
        torch.manual_seed(0)
        model = gf.models.create_model(sys.argv[2], z_dim=8, c_dim=1, channels=4, n_blocks=2)
        model = gf.nn.SyncBatchNormAct.convert_sync_batchnorm(model).double()
        recipe = Recipe(accumulate=int(sys.argv[3]))
        trainer = GANTrainer(model, loss="hinge", r1=0.1 if sys.argv[2] == "wgan" else 0, recipe=recipe)
        noise = iter(torch.randn(12, 8, 8, generator=torch.Generator().manual_seed(2)).double())
        count = world_size()
        trainer._fake = lambda n, labels: trainer._generator(next(noise)[: n * count][rank() :: count])
        messages = []
        for network in trainer._parallel:
            network.register_comm_hook(messages, count_and_reduce)
        step = trainer.step
        trainer.step = lambda images, labels: step(images.double(), labels)
        fit(trainer, gf.data.load_dataset("digits", image_size=16), steps=3, batch_size=8 // world_size())
        state = copy.deepcopy(model.state_dict())
        network = trainer.prepared(model.discriminator)
        model.zero_grad()
        images = torch.randn(2, 8, 1, 16, 16, generator=torch.Generator().manual_seed(3)).double()
        sum(network(part[rank() :: count], None).mean() for part in images).backward()
        gradients = [parameter.grad for parameter in network.parameters()]
        if rank() == 0:
            torch.save((state, gradients, messages), sys.argv[1])
"""


@pytest.mark.parametrize(("name", "parts"), [("wgan", 1), ("dcgan", 1), ("wgan", 2)])
def test_two_processes_equal_one_with_the_whole_batch(name: str, parts: int, tmp_path: Path) -> None:
    """Weights and running statistics of a training; then the gradients of two forward passes in one backward."""
    (*two, messages), (*one, _) = run_in_two_and_in_one(IN_PROCESSES, tmp_path, name, str(parts))
    torch.testing.assert_close(two, one, rtol=1e-6, atol=1e-9)
    assert len(messages) == 3 * 2  # once for each network and step, however many parts


TERMINATED = """
    import os, signal, sys, torch, genimg_fast as gf
    from genimg_fast.training import GANTrainer, RunFolder, fit
    from genimg_fast.training.processes import process_group, rank

    class EndTheSecond(GANTrainer):
        def step(self, images, labels):
            if self.steps_done == 1 and rank() == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().step(images, labels)

    with process_group(torch.device("cpu")):
        trainer = EndTheSecond(gf.models.DCGAN(z_dim=8, c_dim=1, channels=4, n_blocks=2))
        run = RunFolder(gf.training.run.Path(sys.argv[1]), {})
        data = gf.data.load_dataset("digits", image_size=16)
        try:
            fit(trainer, data, steps=9, run=run if rank() == 0 else None)
        except ValueError as error:
            assert "some have a run folder" in str(error)
        else:
            raise AssertionError
        try:
            fit(trainer, data, steps=9, batch_size=8, run=run)
        except SystemExit as stopped:
            (run.path / f"{rank()}.txt").write_text(str(stopped.code))

        def fail(state):
            raise OSError("cannot write checkpoint.pt")

        run.save_checkpoint = fail  # the first process alone calls it
        try:
            fit(trainer, data, steps=3, batch_size=8, run=run)
        except OSError as error:
            (run.path / f"{rank()}.txt").open("a").write(f" {error}")
"""


def test_a_signal_or_an_error_of_one_process_stops_all(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "terminated", {})
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(TERMINATED))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launch, script, run.path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [(run.path / f"{number}.txt").read_text() for number in range(2)] == [
        "143 cannot write checkpoint.pt"
    ] * 2
    assert load_checkpoint(run.path)["step"] == 2
