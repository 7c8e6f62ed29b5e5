"""What exists only because a program is distributed says so: the syntax trees of the recipes' programs are read for it.

`grep -rn "# Distributed:" recipes/` is promised to be the shortest course in the subject,
so no line of it may be missing.
"""

import ast
import re
import tokenize

import pytest

from cookbook import ROOT
from tests.helpers import recipes

TAG = "# Distributed:"
# Names of calls that a program on one process would not have; a name stands for itself and for what ends with `.name`.
NAMES = """
dist.init_process_group dist.destroy_process_group dist.TCPStore dist.get_rank dist.get_world_size
dist.all_reduce dist.all_gather dist.all_gather_object dist.all_gather_into_tensor dist.all_to_all_single dist.barrier
dist.broadcast dist.broadcast_object_list dist.batch_isend_irecv dist.gather dist.gather_object dist.reduce
dist.reduce_scatter_tensor dist.scatter dist.send dist.recv dist.isend dist.irecv
DistributedDataParallel fully_shard init_device_mesh DeviceMesh parallelize_module PipelineStage DistributedSampler
Schedule1F1B ScheduleGPipe ScheduleInterleaved1F1B

hvd.init hvd.shutdown hvd.rank hvd.size hvd.local_rank hvd.allreduce hvd.allgather hvd.broadcast hvd.broadcast_object
hvd.broadcast_variables hvd.broadcast_parameters hvd.broadcast_optimizer_state hvd.alltoall hvd.barrier
hvd.DistributedOptimizer hvd.DistributedGradientTape hvd.elastic.run hvd.elastic.TorchState hvd.allreduce_async
hvd.synchronize

tf.distribute.MirroredStrategy tf.distribute.MultiWorkerMirroredStrategy tf.distribute.ParameterServerStrategy
tf.distribute.TPUStrategy tf.distribute.Server tf.distribute.coordinator.ClusterCoordinator
strategy.scope strategy.run strategy.reduce strategy.gather strategy.distribute_datasets_from_function
strategy.experimental_distribute_dataset coordinator.schedule coordinator.join coordinator.create_per_worker_dataset
dtensor.create_mesh dtensor.relayout dtensor.copy_to_mesh

get_context().get_world_rank get_context().get_world_size ray.train.get_dataset_shard ray.train.torch.prepare_model
ray.train.report ray.train.torch.prepare_data_loader TorchTrainer TensorflowTrainer

torchft.Manager manager.start_quorum manager.allreduce manager.should_commit

context.broadcast barrier addPyFile parallelize
ray.init ray.remote
shared_now shared_clock
distributed.Client SpecCluster
"""
CALLS = NAMES.split()
PROGRAMS = [
    path
    for recipe in recipes()
    for path in sorted((ROOT / "recipes" / recipe).glob("*.py"))
    if not path.name.startswith("test_")
]


NEAR = 3  # lines of code that a comment above them speaks of
SHORT = 10  # lines: a tag at the head of such a function or statement is near enough to all that is in it


def untagged(source):
    """(line, what) of each thing that only a distributed program has (`distributed`) and that has no tag.

    A tag may stand on its own lines, above it, or at the head of what holds it.
    A comment speaks of the NEAR lines under it, up to the next comment of its own line or the next blank line. The head
    of a function takes in the comment above its first statement. What is longer than SHORT needs tags inside, unless
    one stands above a function's `def`.
    """
    tokens = tokenize.generate_tokens(iter(source.splitlines(keepends=True)).__next__)
    comments = {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}
    lines = source.splitlines()
    alone = {number for number, line in enumerate(lines, 1) if line.lstrip().startswith("#")}

    def tagged(first, last, near=NEAR):
        """Whether a tag is on these lines, or in the comment that speaks of the first of them."""
        while first > 1 and near > 1 and first - 1 not in alone and lines[first - 2].strip():
            first, near = first - 1, near - 1
        while first - 1 in alone:
            first -= 1
        return any(comments.get(number, "").startswith(TAG) for number in range(first, last + 1))

    def find(node, covered, kept):
        """What has no tag in a statement or an expression. `kept`: see `kept_ranks`."""
        body = getattr(node, "body", None)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            kept = kept | kept_ranks(node)
            start = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            statements = body[1:] if ast.get_docstring(node) is not None else body
            above = (
                bool(statements)
                and statements[0].lineno - 1 in alone
                and tagged(statements[0].lineno, statements[0].lineno - 1, 1)
            )
            covered = covered or tagged(start, node.lineno, 1) or (above and node.end_lineno - start < SHORT)
        elif isinstance(node, ast.stmt) and isinstance(body, list):
            head = tagged(node.lineno, max(node.lineno, body[0].lineno - 1))
            inside = covered or (head and node.end_lineno - node.lineno < SHORT)
            for child in ast.iter_child_nodes(node):
                of_head = not isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case)
                yield from find(child, covered or head if of_head else inside, kept)
            return
        elif isinstance(node, ast.stmt):
            covered = covered or tagged(node.lineno, node.end_lineno)
        elif not covered and (what := distributed(node, kept)) and not tagged(node.lineno, node.end_lineno):
            yield node.lineno, what
        for child in ast.iter_child_nodes(node):
            yield from find(child, covered, kept)

    tree = ast.parse(source)
    return list(find(tree, False, kept_ranks(tree)))


def distributed(node, kept):
    """What it is that a program on one process would not have, or None.

    A call in CALLS, a question who one is, or every world_size-th of something.
    """
    if isinstance(node, ast.Call):
        return named(node)
    if isinstance(node, ast.Compare) and asks_rank(node):
        return ast.unparse(node)
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in kept:
        return node.id
    if isinstance(node, ast.Slice) and node.step and ast.unparse(node.step).endswith("world_size"):
        return ast.unparse(node)
    return None


def asks_rank(node):
    """Whether an expression compares a rank: what is called `rank`, what a call gives that ends with it, a task's."""
    sides = [ast.unparse(side) for side in (node.left, *node.comparators)] if isinstance(node, ast.Compare) else []
    return any(re.search(r"(^|\.|_)rank(\(\))?$|^task\(\)\.index$", side) for side in sides)


def kept_ranks(scope):
    """Names of variables that keep the answer in a module or a function: `first = dist.get_rank() == 0`."""
    found, left = set(), list(scope.body)
    while left:
        node = left.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue  # a scope of its own
        if isinstance(node, ast.Assign | ast.NamedExpr | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            pairs = [(target, node.value) for target in targets]
            for target, value in pairs:
                if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                    pairs += zip(target.elts, value.elts, strict=True)
            found |= {target.id for target, value in pairs if isinstance(target, ast.Name) and asks_rank(value)}
        left += ast.iter_child_nodes(node)
    return found


def named(call):
    """The entry of CALLS that a call is one of, or None."""
    text = ast.unparse(call.func)
    return next((name for name in CALLS if text == name or text.endswith(f".{name}")), None)


def test_the_list_is_of_names_that_the_recipes_know():
    texts = [path.read_text() for path in PROGRAMS]
    used = {named(node) for text in texts for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)}
    assert len(used & set(CALLS)) >= 50, "a list that meets nothing finds nothing"


WAITS = '    """Waits."""\n    # Distributed: all wait.\n'
LONG = "".join(f"    step({number})\n" for number in range(SHORT))


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("dist.barrier()\n", [1]),
        ("# Distributed: all wait.\ndist.barrier()\n", []),
        ("dist.barrier()  # Distributed: all wait.\n", []),
        ("# all wait\ndist.barrier()\n", [2]),
        ("# Distributed: the sum.\ntotal = tensor(1)\ndist.all_reduce(total)\n", []),
        ("# Distributed: the sum.\na = 1\n\ndist.all_reduce(a)\n", [4]),
        ("# Distributed: the sum.\na = 1\n# another thing\ndist.all_reduce(a)\n", [4]),
        ("# Distributed: the sum.\na = 1\nb = 2\nc = 3\ndist.all_reduce(a)\n", [5]),
        ('def f():\n    """Distributed: all wait."""\n    dist.barrier()\n', [3]),
        (f"def f():\n{WAITS}    a = 1\n    b = 2\n    c = 3\n    dist.barrier()\n", []),
        (f"def f():\n    # Distributed: all wait.\n{LONG}    dist.barrier()\n", [SHORT + 3]),
        (f"# Distributed: all wait.\ndef f():\n{LONG}    dist.barrier()\n", []),
        ("# Distributed: one for all.\nif dist.get_rank() == 0:\n    hvd.broadcast(a)\n", []),
        (f"# Distributed: one for all.\nif dist.get_rank() == 0:\n{LONG}    hvd.broadcast(a)\n", [SHORT + 3]),
        ("loss = step(\n    batch,\n    hvd.size(),  # Distributed: the mean is over all.\n)\n", []),
        ("if rank == 0:\n    save()\n", [1]),
        ("if self.rank > 0:\n    return\n", [1]),
        ("first = dist.get_rank() == 0  # Distributed: one for all.\n\nif first:\n    save()\n", [3]),
        ("first = rank == 0  # Distributed: one for all.\nif first:\n    save()\n", []),
        ("def f():\n    a, first = 1, hvd.rank() == 0  # Distributed: one for all.\n\n    return first\n", [4]),
        ("def f():\n    first = rank == 0  # Distributed: one.\n\n\ndef g(first):\n    return first\n", []),
        ("ranks == 0\n", []),
        ("subprocess.run(argv)\n", []),
    ],
)
def test_where_a_tag_may_stand(source, lines):
    assert [line for line, _ in untagged(source)] == lines


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: str(path.relative_to(ROOT / "recipes")))
def test_what_exists_only_because_it_is_distributed_says_so(path):
    missing = [f"{path.relative_to(ROOT)}:{line}: {name}" for line, name in untagged(path.read_text())]
    assert not missing, f"no comment there begins with `{TAG}`:\n" + "\n".join(missing)


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: str(path.relative_to(ROOT / "recipes")))
def test_a_tag_is_a_comment(path):
    """A tag in a docstring is not found by the grep that the README promises."""
    assert not re.findall(r'^\s*(?:""")?Distributed:.*', path.read_text(), re.MULTILINE)
