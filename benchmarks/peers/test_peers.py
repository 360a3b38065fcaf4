"""The straight-line PyTorch agents against the checks of their specification (needs the extra `bench`)."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from peers import torch_flash_sac, torch_td3, torch_td7  # noqa: E402

S, A = 17, 6


def filled(agent, rows: int = 300):
    """The agent with random transitions in its replay."""
    random = np.random.default_rng(0)
    for i in range(rows):
        action = random.uniform(-1, 1, A)
        agent.add(random.normal(size=S), action, random.normal(size=S), random.normal(), i % 50 == 49)
    return agent


@pytest.fixture
def td7():
    torch.manual_seed(0)
    return filled(torch_td7.TD7(S, A))


def same(one, other) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_avg_l1_norm():
    rows = torch.tensor([[1.0, -2, 3, -4], [2, 0, 0, 0], [0, 0, 0, 0]])
    expected = torch.tensor([[0.4, -0.8, 1.2, -1.6], [4, 0, 0, 0], [0, 0, 0, 0]])
    torch.testing.assert_close(torch_td7.avg_l1_norm(rows), expected)
    x = torch.tensor([1.0, -2, 3, -4], requires_grad=True)
    torch_td7.avg_l1_norm(x)[0].backward()
    torch.testing.assert_close(x.grad, torch.tensor([0.36, 0.04, -0.04, 0.04]))


def test_huber_lap_loss():
    for x, value in ((0, 0), (0.25, 0.03125), (0.5, 0.125), (1, 1), (1.5, 1.5), (2, 2), (10, 10)):
        assert torch_td7.huber_lap(torch.tensor([[float(x)]])).item() == pytest.approx(value)
    delta = torch.tensor([[0, 0.5], [0.999, 1.0], [1.001, 2.0], [3, 10]], requires_grad=True)
    loss = torch_td7.huber_lap(delta)
    assert loss.item() == pytest.approx(4.406250125)
    loss.backward()
    torch.testing.assert_close(4 * delta.grad, torch.tensor([[0, 0.5], [0.999, 1], [1, 1], [1, 1]]))


def test_priorities():
    delta = torch.tensor([[0.2, 0.7], [1.0, 0.3], [2.0, 5.0], [32, 1], [100, 3]])
    expected = torch.tensor([1, 1, 1.90365394, 4, 6.30957344])
    torch.testing.assert_close(torch_td7.priority(delta), expected)


@pytest.mark.parametrize(("bounds", "expected"), [((0, 0), [1, 1, 1]), ((-1, 2), [2.98, 0.01, 1])])
def test_target_value(bounds, expected):
    reward, not_done = torch.ones(3, 1), torch.tensor([[1.0], [1], [0]])
    next_q = torch.tensor([[5.0, 3], [-4, 2], [9, 9]])
    y = torch_td7.target_value(reward, not_done, next_q, *bounds)
    torch.testing.assert_close(y, torch.tensor(expected, dtype=torch.float32)[:, None])


def test_sampling_follows_priorities():
    replay = torch_td7.PrioritizedReplay(1, 1, capacity=8)
    replay.size = 5
    replay.priorities[:5] = torch.tensor([1.0, 2, 1, 5, 1])
    u = [0, 0.05, 0.1, 0.1000001, 0.3, 0.35, 0.4, 0.9, 0.999999]
    assert replay.locate(torch.tensor(u)).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 4]


def test_max_priority_rises_with_updates_and_may_fall_at_a_reset():
    replay = torch_td7.PrioritizedReplay(1, 1, capacity=4)
    for _ in range(2):
        replay.add(0, 0, 0, 0, False)
    replay.index = torch.tensor([0, 1])
    replay.update_priorities(torch.tensor([2.5, 1.2]))
    replay.add(0, 0, 0, 0, False)
    assert replay.priorities.tolist() == pytest.approx([2.5, 1.2, 2.5, 0])
    replay.index = torch.tensor([0, 2])
    replay.update_priorities(torch.tensor([1.1, 1.3]))
    assert replay.max_priority == 2.5
    replay.reset_max_priority()
    assert replay.max_priority == pytest.approx(1.3)


def test_swap_moves_the_old_fixed_encoder_on(td7):
    for encoder, value in ((td7.encoder, 1.0), (td7.fixed, 2.0), (td7.fixed_target, 3.0)):
        for parameter in encoder.parameters():
            parameter.data.fill_(value)
    online, fixed = copy.deepcopy(td7.encoder), copy.deepcopy(td7.fixed)
    td7.swap()
    assert same(td7.encoder, online)
    assert same(td7.fixed, online)
    assert same(td7.fixed_target, fixed)


def test_encoders_reach_the_target_two_swaps_late(td7, monkeypatch):
    assert torch_td7.SYNC_EVERY == 250
    monkeypatch.setattr(torch_td7, "SYNC_EVERY", 20)
    online = {0: copy.deepcopy(td7.encoder)}
    rewards = td7.replay.columns[3]
    for number in range(1, 61):
        td7.update()
        last = number // 20 * 20
        if number == last:
            online[number] = copy.deepcopy(td7.encoder)
            assert same(td7.actor_target, td7.actor)
            assert same(td7.critic_target, td7.critic)
        assert same(td7.fixed, online[last])
        assert same(td7.fixed_target, online[max(last - 20, 0)])
        if number < 20:
            assert (td7.low, td7.high) == (0, 0)
        if number == 20:  # the target was the reward until here
            assert rewards.min() <= td7.low < td7.high <= rewards.max()


def test_gradients_reach_only_what_learns(td7):
    names = ("encoder", "critic", "actor", "fixed", "fixed_target", "critic_target", "actor_target")
    for number in (1, 2):
        before = {name: copy.deepcopy(getattr(td7, name)) for name in names}
        td7.update()
        moved = {name for name in names if not same(before[name], getattr(td7, name))}
        assert moved == {"encoder", "critic"} | ({"actor"} if number == 2 else set())


def test_actor_climbs_through_the_fixed_encoder(td7):
    observation = torch.randn(8, S)
    zs = td7.fixed.zs(observation)

    def gradient(held_still: bool):
        actor = copy.deepcopy(td7.actor)
        action = actor(observation, zs)
        zsa = td7.fixed.zsa(zs, action)
        (-td7.critic(observation, action, zsa.detach() if held_still else zsa, zs).mean()).backward()
        return actor.out.weight.grad

    through, around = gradient(held_still=False), gradient(held_still=True)
    td7.learn_actor(observation, zs)
    torch.testing.assert_close(td7.actor.out.weight.grad, through)
    assert not torch.allclose(through, around, rtol=0.01)


def test_parameter_counts(td7):
    counts = [sum(p.numel() for p in net.parameters()) for net in (td7.encoder, td7.critic, td7.actor)]
    assert counts == [335_104, 538_114, 203_270]


def test_td3_moves_actor_and_targets_every_second_update():
    torch.manual_seed(0)
    td3 = filled(torch_td3.TD3(S, A))
    names = ("actor", "critic", "actor_target", "critic_target")
    for number in (1, 2):
        before = {name: copy.deepcopy(getattr(td3, name)) for name in names}
        td3.update()
        moved = {name for name in names if not same(before[name], getattr(td3, name))}
        assert moved == ({"critic"} if number == 1 else set(names))
    nets = (before["critic_target"], td3.critic, td3.critic_target)
    old, online, new = (next(net.parameters()) for net in nets)
    torch.testing.assert_close(new, 0.995 * old + 0.005 * online)


def test_flash_sac_has_the_sizes_and_lengths_of_the_release():
    torch.manual_seed(0)
    agent = filled(torch_flash_sac.FlashSAC(S, A))
    sizes = [sum(p.numel() for p in net.parameters()) for net in (agent.actor, *agent.critics)]
    assert sizes == [268_590, 1_085_843, 1_085_843]
    norm = torch_flash_sac.UnitNorm(1)
    y = norm.normalise(torch.tensor([[1.0], [2], [3], [4]]), "train")
    torch.testing.assert_close(y[:2, 0], torch.tensor([-1.341635, -0.447212]))
    assert norm.running_var.item() == pytest.approx(1.006667)
    for _ in range(3):
        agent.update()
    for module in (*agent.actor.modules(), *agent.critics.modules()):
        if isinstance(module, torch_flash_sac.UnitLinear):
            torch.testing.assert_close(module.weight.norm(dim=1), torch.ones(module.out_features))
        if isinstance(module, torch_flash_sac.UnitNorm):
            square = module.weight.square().sum() + module.bias.square().sum()
            assert square.item() == pytest.approx(module.num_features, rel=1e-4)


def test_flash_sac_projects_onto_atoms():
    zero = torch.zeros(1, 101)
    zero[0, 50] = 1.0
    positions = torch.linspace(-5.0, 5.0, 101)[None] * 0.99 + 0.234 + 0.0495
    found = torch_flash_sac.project_onto_atoms(zero, positions)
    torch.testing.assert_close(found[0, 52:54], torch.tensor([0.165, 0.835]), atol=1e-5, rtol=0)
    ends = torch_flash_sac.project_onto_atoms(zero, torch.full((1, 101), 7.0))
    assert ends[0, 100].item() == pytest.approx(1.0)


def test_train_loop_makes_one_update_per_step(monkeypatch):
    pytest.importorskip("gymnasium")
    monkeypatch.setattr("peers.WARM_UP", 300)
    agent = torch_td3.TD3(S, A)
    contender = torch_td3.train_loop(agent)
    assert (contender.updates(), agent.replay.size) == (0, 300)
    contender.advance(6)
    assert (contender.updates(), agent.replay.size) == (6, 306)
