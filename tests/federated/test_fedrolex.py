from __future__ import annotations

import torch
from fleet_of_batches import method, take_part

from leanfleet.randomness import torch_generator


def test_the_window_rolls_by_one_channel_a_round():
    m, params = method("fedrolex")
    report = take_part(m, params, 0, share=0.4)[3]
    first = m.plan.groups[0].name
    windows = [m.choose(params, report, round, torch_generator(0))[first] for round in range(17)]
    width = len(windows[0])
    assert 1 < width < 16
    for round, window in enumerate(windows):
        assert window.tolist() == sorted((round + i) % 16 for i in range(width))
    counts = torch.bincount(torch.cat(windows[:16]), minlength=16)
    assert counts.tolist() == [width] * 16


def test_it_is_as_wide_as_federated_dropout():
    for share in (0.3, 0.6, 1.0):
        widths = []
        for name in ("fedrolex", "federated-dropout"):
            m, params = method(name)
            kept, _ = m.opened(take_part(m, params, 0, share=share)[0])
            widths.append([len(ids) for ids in kept.values()])
        assert widths[0] == widths[1]
