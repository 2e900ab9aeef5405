import copy

import pytest
import torch

from genimg_fast.training.adam import Adam


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    images = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 4),
        torch.nn.Conv2d(8, 8, 1),
        torch.nn.Conv2d(8, 1, 3, bias=False),
        torch.nn.Flatten(),
    )
    return torch.nn.Sequential(images, torch.nn.Linear(9, 5)).to(memory_format=torch.channels_last)


def train(optimizer_type: type[torch.optim.Adam], net: torch.nn.Module, **options) -> torch.optim.Adam:
    optimizer = optimizer_type(net.parameters(), 1e-2, (0.5, 0.999), fused=True, **options)
    for step in range(3):
        optimizer.zero_grad()
        net(torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(step))).square().mean().backward()
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}, {"amsgrad": True}], ids=str)
def test_numbers_and_state_are_those_of_torchs(options: dict) -> None:
    nets = [network(), copy.deepcopy(network())]
    ours, torchs = (train(kind, net, **options) for kind, net in zip((Adam, torch.optim.Adam), nets, strict=True))
    torch.testing.assert_close(nets[0].state_dict(), nets[1].state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(ours.state_dict(), torchs.state_dict(), rtol=0, atol=0)
    state = ours.state[nets[0][0][0].weight]
    assert state["exp_avg"].is_contiguous(memory_format=torch.channels_last)


def test_the_kernel_gets_what_it_does_not_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    plain = torch._fused_adam_
    monkeypatch.setattr(torch, "_fused_adam_", lambda *lists, **k: given.append(lists) or plain(*lists, **k))
    train(Adam, network())
    assert len(given) == 3
    assert all(tensor.is_contiguous() for lists in given for tensors in lists[:4] for tensor in tensors)
    train(torch.optim.Adam, network())
    assert not all(tensor.is_contiguous() for tensor in given[-1][0])
