"""The bench on tiny sizes: what it times is what it says; no test looks at a clock."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from torch.utils.flop_counter import FlopCounterMode

from runs.bench import __main__ as command
from runs.bench import timing
from runs.bench.contenders import PEERS, Architecture, Contender, ours
from runs.bench.setup import Setup
from runs.bench.step import exponent, peak
from runs.bench.table import Bar, Row, Table
from runs.bench.timing import Figure, in_turns, ratio
from runs.bench.work import Products, Work, matrices
from runs.cli import CONFIGS, CommandError
from tests.flows.bent import bent
from tests.runs import in_process

CPU = torch.device("cpu")
TINY = [
    "rounds=2", "turn=0", "threads=1", "dim=4", "trainer.batch_size=8", "trainer.compile=false",
    *(f"flows.{size}.{key}" for size in ("large", "small")
      for key in ("n_couplings=2", "hidden=[6,6]", "n_bins=3")),
    "flow.n_couplings=2", "flow.hidden=[6]", "flow.n_circle_couplings=2", "flow.circle_hidden=[6]",
    "system@systems.aldp=aldp_vacuum", "system@systems.tetra=butane",
    "system@systems.hexa=butane", "~system@systems.elil",
    "frames.aldp=2", "frames.hexa=2", "recipe.hot=4", "recipe.annealing=4",
]  # fmt: skip


def of_all_peers(form: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.parametrize("peer", PEERS)(form)


def contender(peer: str, architecture: Architecture, *, compiled: bool = False) -> Contender:
    pytest.importorskip(peer)
    made = PEERS[peer](architecture, CPU, compiled=compiled)
    with torch.no_grad():
        for parameter in made.module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def our_own(architecture: Architecture) -> Contender:
    mine = ours(architecture, CPU, compiled=False)
    bent(mine.module, 0.2)
    return mine


def of_any(who: str, architecture: Architecture) -> Contender:
    return our_own(architecture) if who == "ours" else contender(who, architecture)


@pytest.mark.parametrize("who", ["ours", *PEERS])
def test_all_are_densities_of_one_class(who: str) -> None:
    """Samples have the density that is claimed for them, and it integrates to one."""
    made = of_any(who, Architecture(4, (16, 16), dim=2, n_bins=4, bound=4.0))
    with torch.no_grad():
        x, log_q = made.sample(200)
        torch.testing.assert_close(made.log_prob(x), log_q, rtol=1e-4, atol=1e-4)
        axis = torch.linspace(-9, 9, 401)
        grid = torch.cartesian_prod(axis, axis)
        density = made.log_prob(grid).double().exp()
        # No standard normal, which all of them start from.
        assert float((log_q + 0.5 * x.square().sum(1)).std()) > 0.1
    assert float(density.sum()) * (18 / 400) ** 2 == pytest.approx(1, abs=5e-3)


@of_all_peers
def test_a_peer_has_as_much_to_learn(peer: str) -> None:
    """It sees one constant less, and its splines and layers have six numbers less."""
    for architecture in (Architecture(16, (256,) * 5), Architecture(8, (256,) * 2)):
        mine = ours(architecture, CPU, compiled=False)
        half, K = architecture.dim // 2, architecture.n_bins
        widest = architecture.hidden[0]
        less = widest + half * (widest + 1) * (3 * K + 3 - (3 * K - 1))
        count = contender(peer, architecture).n_parameters
        assert count == mine.n_parameters - architecture.n_couplings * less
        assert 0.88 < count / mine.n_parameters < 1


@of_all_peers
def test_a_step_lowers_the_loss(peer: str) -> None:
    made = contender(peer, Architecture(2, (8,), dim=4, n_bins=3))
    x = torch.randn(32, 4)
    step, before = made.trainer(x), made.log_prob(x).mean().detach()
    for _ in range(20):
        step()
    assert made.log_prob(x).mean() > before
    made.sampler(4)()
    assert all(p.grad is not None for p in made.module.parameters())


@pytest.mark.slow
@of_all_peers
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_peer_equals_itself(peer: str) -> None:
    architecture = Architecture(3, (8,), dim=4, n_bins=3)
    torch._dynamo.reset()
    torch.manual_seed(1)
    eager = contender(peer, architecture)
    torch.manual_seed(1)
    compiled = contender(peer, architecture, compiled=True)
    x = 3 * torch.randn(16, 4)
    torch.testing.assert_close(compiled.log_prob(x), eager.log_prob(x), rtol=1e-4, atol=1e-4)
    gradients = [
        torch.autograd.grad(c.log_prob(x).mean(), list(c.module.parameters()))
        for c in (eager, compiled)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)
    with torch.no_grad():
        points, log_q = compiled.sample(16)
        torch.testing.assert_close(eager.log_prob(points), log_q, rtol=1e-4, atol=1e-4)


def test_work_is_that_of_the_products() -> None:
    """Counted by torch in a step: all but the gradient of the data, which nobody asks for."""
    architecture, n = Architecture(3, (5, 7), dim=6, n_bins=2), 11
    mine = our_own(architecture)
    shapes, work = matrices(mine.module), Work.of(mine.module, n)
    assert sorted(shapes) == sorted(3 * [(5, 4), (7, 5), (27, 7)])
    with FlopCounterMode(display=False) as counter:
        mine.trainer(torch.randn(n, 6))()
    assert counter.get_total_flops() == work.flops - 2 * n * 5 * 4
    weights, sides = 3 * (20 + 35 + 189), 3 * (9 + 12 + 34)
    parameters = weights + 3 * (5 + 7 + 27)
    assert work.bytes == 4 * (3 * weights + 3 * n * sides + 7 * parameters)


@pytest.mark.parametrize("batch_last", [True, False])
def test_products_are_those_of_a_perceptron(batch_last: bool) -> None:
    n, shapes = 4, [(3, 2), (5, 3)]
    products = Products(shapes, n, device=CPU, batch_last=batch_last)
    with FlopCounterMode(display=False) as counter:
        products.step()
    assert counter.get_total_flops() == 6 * n * (3 * 2 + 5 * 3)
    for k, (a, b) in enumerate(shapes):
        rows = [products.inputs[k], products.outputs[k], products.gradients[a], products.spare[b]]
        x, y, g, g_x = rows if batch_last else [t.T for t in rows]
        torch.testing.assert_close(y, products.weights[k] @ x)
        torch.testing.assert_close(products.slopes[k], g @ x.T)
        torch.testing.assert_close(g_x, products.weights[k].T @ g)


def test_tasks_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, order = [0.0], []

    def task(name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            clock[0] += seconds
            order.append(name)

        return run

    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    found = in_turns({"a": task("a", 1.0), "b": task("b", 0.5)}, rounds=3, device=CPU, least=1.0)
    assert found == {"a": [1.0] * 3, "b": [0.5] * 3}
    # Three calls to warm up; then a second each, and every round another one begins.
    assert "".join(order) == "aaabbb" + "abb" + "bba" + "abb"
    assert ratio(found["a"], found["b"]) == Figure(2.0, 2.0, 2.0)


def test_median_and_quartiles() -> None:
    assert Figure.of([5.0, 1.0, 2.0, 4.0, 3.0]) == Figure(3.0, 2.0, 4.0)
    assert Figure.of([7.0]) == Figure(7.0, 7.0, 7.0)
    # Compared round by round: a disturbance of one round hits both.
    assert ratio([2.0, 20.0, 2.0], [1.0, 10.0, 1.0]) == Figure(2.0, 2.0, 2.0)


def test_table_says_what_is_met_missed_and_unknown() -> None:
    bars = {
        "fast": Bar("at least", 2.0, "x"), "small": Bar("at most", 25.0, "%"),
        "far": Bar("at least", 1e7, "/s"),
    }  # fmt: skip
    table = Table(bars)
    rows = [
        Row("fast", Figure(1.994, 1.9, 2.1), "x", "why"),
        Row("small", Figure(25, 25, 25), "%"),
    ]
    lines = [*table.lines(rows), *table.remaining(bars, "no GPU at hand")]
    assert [" ".join(line.split()) for line in lines] == [
        "fast 1.99 x 1.9 to 2.1 at least 2 x MISSED why",
        "small 25 % at most 25 % met",
        "far not measured at least 1e+07 /s no GPU at hand",
    ]
    assert table.missed == ["fast: 1.99 x, at least 2 x"]
    assert table.verdict == "1 of 3 bars met, 1 missed, 1 not measured"


def test_growth_with_size() -> None:
    sizes = {"a": 22, "b": 42, "c": 75}
    costs = {name: 3e-4 * n**1.7 for name, n in sizes.items()}
    assert exponent(sizes, costs) == pytest.approx(1.7)


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read from /proc")
def test_memory_is_what_a_task_adds() -> None:
    held = torch.ones(2**23)
    found = peak(lambda: torch.ones(2**24).sum(), CPU)
    assert found is not None
    assert found == pytest.approx(2**26, rel=0.05)
    assert float(held[0]) == 1


def config(*overrides: str, device: str = "cpu") -> Setup:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return Setup(compose("bench", overrides=[*TINY, *overrides]), torch.device(device))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_every_bar_has_its_row(device: str) -> None:
    """All parts run, those of a GPU here as well; only a whole recipe is left to others."""
    for name in PEERS:
        pytest.importorskip(name)
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    setup = config(device=device)
    rows: dict[str, Row] = {}
    for section in command.SECTIONS["cuda"].values():
        rows |= {row.name: row for row in section(setup)}
    names = [*command.BARS["cpu"], *command.BARS["cuda"], *command.NAMED["cuda"]]
    assert [name for name in names if name not in rows] == []
    assert [name for name, row in rows.items() if row.figure is None] == [
        "TA-BG, the whole recipe"
    ]
    times = [row.figure for row in rows.values() if row.unit == "ms" and "gap" not in row.name]
    assert len(times) > 30
    assert all(f is not None and 0 < f.low <= f.median <= f.high for f in times)
    assert [row.note for name, row in rows.items() if name.startswith("scale, reverse")] == [
        f"{n} atoms, batch 8" for n in (22, 14, 14)
    ]


def test_a_missed_bar_fails_after_all_rows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(command, "BARS", {
        "cpu": {"first": Bar("at least", 2.0, "x"), "last": Bar("at least", 2.0, "x")},
        "cuda": {"other": Bar("at least", 10.0, "x")},
    })  # fmt: skip
    reached = [Row("first", Figure(1, 1, 1), "x"), Row("last", Figure(3, 3, 3), "x")]
    monkeypatch.setattr(
        command, "SECTIONS", {"cpu": {"a": lambda s: reached}, "cuda": {"a": None}}
    )
    with pytest.raises(SystemExit) as stopped:
        in_process.command(command, "sections=[a]", "device=auto", "threads=1")
    assert stopped.value.code == 1
    out, err = capsys.readouterr()
    lines = [" ".join(line.split()) for line in out.splitlines() if line]
    assert lines[2:5] == [
        "first 1 x at least 2 x MISSED",
        "last 3 x at least 2 x met",
        "1 of 2 bars met, 1 missed, 0 not measured",
    ]
    assert lines[-4] == "other not measured at least 10 x no GPU at hand"
    assert err == "Expected every bar to be met, got first: 1 x, at least 2 x.\n"
    reached[0] = Row("first", Figure(2, 2, 2), "x")
    in_process.command(command, "sections=[a]", "device=cuda", "threads=1")
    assert capsys.readouterr().out.count("not asked for") == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("device=tpu", "Expected device to be auto, cpu or cuda, got 'tpu'"),
        ("sections=[speed]", "Expected sections out of peers, step, .*, got speed"),
        ("rounds=0", "Expected rounds >= 1, got 0"),
        ("trainer.compile=maybe", "Expected compile to be auto, true or false, got 'maybe'"),
    ],
)
def test_bad_input(override: str, message: str) -> None:
    with pytest.raises(CommandError, match=message):
        command.check(config(override).config)


def test_a_missing_peer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = config()
    find = command.check_peers.__globals__["importlib"].util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *a: None if name == "zuko" else find(name, *a)
    )
    with pytest.raises(CommandError, match=r"got no zuko.*: pip install 'boltzflow\[bench\]'"):
        command.check(setup.config)
