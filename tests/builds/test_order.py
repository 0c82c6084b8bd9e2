from doit.control import TaskControl
from doit.task import Task

from ptycho_tasks.builds.order import sort_tasks


def of(*tasks):
    return TaskControl(list(tasks)).tasks


def test_each_task_comes_behind_what_it_needs_and_inputs_in_the_order_of_definition():
    files = [f"f{n}" for n in range(9)]
    makers = [Task(f"make{n}", None, targets=[file]) for n, file in enumerate(files)]
    tasks = of(Task("last", None, file_dep=files, task_dep=["b", "a"]), *makers, *_two())
    names = [maker.name for maker in makers]
    assert sort_tasks(tasks, ["last"]) == ["b", "a", *names, "last"]
    assert sort_tasks(tasks, ["a", "last"], done=["b"]) == ["a", *names, "last"]


def _two():
    return Task("a", None), Task("b", None)


def test_a_chain_may_be_longer_than_the_stack():
    chain = [Task(str(n), None, task_dep=[str(n + 1)]) for n in range(5000)]
    tasks = of(*chain, Task("5000", None))
    assert sort_tasks(tasks, ["0"]) == [str(n) for n in range(5000, -1, -1)]


def test_setup_tasks_and_a_cycle_are_left_to_doit():
    a = Task("a", None, task_dep=["b"], setup=["s"])
    tasks = of(a, Task("b", None, task_dep=["a"]), Task("s", None))
    assert sort_tasks(tasks, ["a"]) == ["b", "a"]
