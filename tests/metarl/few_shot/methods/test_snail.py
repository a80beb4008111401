"""SNAIL: causal convolutions and attention against a slow oracle, one sequence for each query image."""

import pytest
import torch
import torch.nn.functional as F

from metarl.core.parameters import expand_over_tasks
from metarl.few_shot.criteria import CLASSIFICATION
from metarl.few_shot.embedding_networks import EmbeddingNet
from metarl.few_shot.learner import FewShotLearner
from metarl.few_shot.methods.sequences import ShuffledEpisodes
from metarl.few_shot.methods.snail import SNAIL, CausalAttention, DenseBlock, SNAILNet
from metarl.few_shot.outer import OuterLoop
from metarl.few_shot.tasks import ImageEpisodes
from tests.metarl.few_shot.embedding_methods import SIZE, embedding, make, numbered, tasks

CHANNELS, LENGTH = 5, 6


def tokens(count=LENGTH, tasks=2, channels=CHANNELS):
    return torch.randn(tasks, count, channels, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("dilation", [1, 2, 4, 8])
def test_dense_blocks_are_causal_convolutions(dilation):
    torch.manual_seed(0)
    block = DenseBlock(CHANNELS, 3, dilation).double()
    sequence = tokens()
    found = block(sequence, LENGTH)
    earlier, now = block.taps.weight.split(CHANNELS, dim=1)
    kernel = torch.stack([earlier, now], dim=2)  # (2 filters, C, taps)
    padded = F.pad(sequence.mT, (dilation, 0))
    first, second = F.conv1d(padded, kernel, block.taps.bias, dilation=dilation).mT.chunk(2, dim=2)
    torch.testing.assert_close(found, first.tanh() * second.sigmoid())


def test_attention_is_over_keys_up_to_the_token():
    torch.manual_seed(0)
    block = CausalAttention(CHANNELS, 4, 3).double()
    sequence = tokens()
    found = block(sequence, LENGTH)
    queries, keys, values = block.projections(sequence).split([4, 4, 3], dim=2)
    for position in range(LENGTH):
        scores = keys[:, : position + 1] @ queries[:, position].unsqueeze(2) / 2
        weights = scores.squeeze(2).softmax(dim=1)
        expected = (weights.unsqueeze(2) * values[:, : position + 1]).sum(dim=1)
        torch.testing.assert_close(found[:, position], expected)


@pytest.mark.parametrize("kind", [lambda: DenseBlock(CHANNELS, 3, 2), lambda: CausalAttention(CHANNELS, 4, 3)])
def test_no_token_sees_a_later_one(kind):
    torch.manual_seed(0)
    block, sequence = kind().double(), tokens(tasks=1).requires_grad_()
    found = block(sequence, LENGTH)
    for position in range(LENGTH):
        [gradient] = torch.autograd.grad(found[0, position].square().sum(), sequence, retain_graph=True)
        assert gradient[0, position].any()
        assert not gradient[0, position + 1 :].any()


def test_every_query_is_the_last_token_of_a_sequence_of_its_own():
    torch.manual_seed(0)
    net = SNAILNet(CHANNELS - 3, 3, LENGTH + 1, filters=3, heads=((4, 2), (3, 5))).double()
    support, queries = tokens(), tokens(4)
    found = net(support, queries)
    for query in range(4):
        sequence = torch.cat([support, queries[:, query : query + 1]], dim=1)
        for block in net.blocks:
            sequence = torch.cat([sequence, block(sequence, sequence.shape[1])], dim=2)
        torch.testing.assert_close(found[:, query], net.output(sequence[:, -1]))


def test_the_network_is_the_papers():
    net = SNAILNet(64, 5, 6)
    kinds = [block.dilation if isinstance(block, DenseBlock) else block.sizes[1:] for block in net.blocks]
    assert kinds == [[64, 32], 1, 2, 4, [256, 128], 1, 2, 4, [512, 256]]
    assert sum(value.numel() for value in net.parameters()) == pytest.approx(3.1e6, rel=0.01)
    assert [b.dilation for b in SNAILNet(64, 5, 26).blocks if isinstance(b, DenseBlock)] == [1, 2, 4, 8, 16] * 2


def test_every_support_image_reaches_the_answer_through_the_convolutions_alone():
    torch.manual_seed(0)
    net = SNAILNet(CHANNELS - 3, 3, LENGTH + 1, filters=3, heads=((4, 2), (3, 5))).double()
    sequence = torch.cat([tokens(tasks=1), tokens(1, tasks=1)], dim=1).requires_grad_()
    found = sequence
    for block in net.blocks:
        if isinstance(block, DenseBlock):
            found = torch.cat([found, block(found, LENGTH)], dim=2)
        else:
            found = torch.cat([found, torch.zeros(1, LENGTH + 1, block.sizes[2], dtype=torch.float64)], dim=2)
    [gradient] = torch.autograd.grad(found[0, -1].square().sum(), sequence)
    assert gradient[0].abs().sum(dim=1).gt(0).all()


def test_the_label_of_a_query_is_not_told():
    method, theta = make("snail")
    drawn = tasks()
    rows = expand_over_tasks(theta, 3)
    state = method.adapt(rows, drawn.support)
    assert torch.equal(state["tokens"][:, :, -3:].argmax(dim=2), drawn.support.targets)
    seen = []
    handle = method.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    method.predict(rows, state, drawn.query.inputs)
    handle.remove()
    assert seen[0].shape == (3, 6, 4 + 3)
    assert not seen[0][:, :, 4:].any()


def test_what_cannot_be_is_refused():
    method, theta = make("snail")
    with pytest.raises(ValueError, match="classes of a task = 4"):
        method.adapt(expand_over_tasks(theta, 3), tasks(ways=4).support)
    with pytest.raises(ValueError, match="task_distribution = 'ImageEpisodes'"):
        method.training_tasks(ImageEpisodes({"train": numbered()}, 3, 1, 1))
    with pytest.raises(ValueError, match="training_ways = 5"):
        SNAIL(embedding(), CLASSIFICATION, training_ways=5, network=method.network).training_tasks(
            ShuffledEpisodes({"train": numbered()}, 3, 1, 1)
        )


def test_it_learns_classes_whose_numbers_are_new_in_each_task():
    generator = torch.Generator().manual_seed(3)
    base = torch.randint(0, 256, (6, 1, *SIZE), generator=generator)
    noise = torch.randint(0, 256, (6, 8, *SIZE), generator=generator)
    pictures = ((3 * base + noise) // 4).to(torch.uint8)
    source = ShuffledEpisodes({"train": pictures, "test": pictures}, ways=2, shots=1, queries=2)
    torch.manual_seed(0)
    network = SNAILNet(8, 2, 3, filters=16, heads=((8, 8), (8, 8)))
    module = EmbeddingNet(SIZE, 8, EmbeddingNet.STRIDED)
    learner = FewShotLearner(source, SNAIL(module, CLASSIFICATION, network=network), num_tasks=8, outer=OuterLoop(0.01))
    lines = [learner.step() for _ in range(80)]
    assert sum(line["accuracy/step_0"] for line in lines[-10:]) / 10 > 0.8
