"""The teacher: a copy on its own that follows by the formula, one parameter at a time."""

import pytest
import torch
from torch import nn

from reid_fast.models.teacher import follow, new_teacher


def network(device="cpu"):
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Linear(7, 1)).to(device)


def test_a_new_teacher_is_a_copy_without_gradient():
    student = network()
    teacher = new_teacher(student)
    for mine, theirs in zip(teacher.state_dict().values(), student.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
        assert mine.data_ptr() != theirs.data_ptr()
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(parameter.requires_grad for parameter in student.parameters())


@pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.999, 1.0])
def test_a_teacher_follows_by_the_formula(momentum, where):
    torch.manual_seed(0)
    teacher, student = network(where), network(where)
    pairs = list(zip(teacher.parameters(), student.parameters(), strict=True))
    expected = [momentum * t.detach() + (1 - momentum) * s.detach() for t, s in pairs]
    follow(teacher, student, momentum)
    for (actual, _), value in zip(pairs, expected, strict=True):
        torch.testing.assert_close(actual.detach(), value)


def test_with_momentum_0_the_teacher_is_exactly_the_student():
    teacher, student = network(), network()
    follow(teacher, student, 0.0)
    assert all(torch.equal(*pair) for pair in zip(teacher.parameters(), student.parameters(), strict=True))


def test_the_statistics_of_batchnorm_stay_the_teachers_own():
    teacher, student = network(), network()
    student[1].running_mean.fill_(3)
    follow(teacher, student, 0.0)
    assert torch.equal(teacher[1].running_mean, torch.zeros(5))


def test_a_student_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="1 parameters and the student 2"):
        follow(nn.Linear(2, 1, bias=False), nn.Linear(2, 1), 0.9)
