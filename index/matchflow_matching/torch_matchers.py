"""The matchers in plain torch operations, many pairs at a time, on any device: what torch_matching falls back on.

Every operation works on each pair alone: sums run over one pair's cells, matrix products are of whole numbers, and no
result is read off another pair. Only the loop's end depends on the whole chunk; pairs that are done stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, ClassVar

import torch

from matchflow_matching.kernels import DIVERGED, PLAIN_ITERATIONS, SLOW
from matchflow_matching.product_kernels import BASE
from matchflow_matching.products import EXACT_IN_FLOAT32
from matchflow_matching.settings import Marginals, MatchMode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Self

    from matchflow_matching.settings import MatchSettings

# Iterations between two looks at which pairs still run; each look waits for the device.
STRIDE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class PairProducts:
    """P pairs, as in products.Products: similarities [P, Rx, Rq], image_attention [P, Rx], query_attention [P, Rq].

    values [P, Rx, Rq]: the similarities less the penalties. image_valid bool [P, Rx], query_valid bool [P, Rq].
    """

    similarities: torch.Tensor
    values: torch.Tensor
    image_attention: torch.Tensor
    query_attention: torch.Tensor
    image_valid: torch.Tensor
    query_valid: torch.Tensor

    def image_weights(self, settings: MatchSettings) -> Weights:
        """Return u."""
        return weigh(self.image_attention, self.image_valid, settings)

    def query_weights(self, settings: MatchSettings) -> Weights:
        """Return v."""
        return weigh(self.query_attention, self.query_valid, settings)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairSolutions:
    """What a matcher says of P pairs: plans float32 [P, Rx, Rq] and, all [P], what Matches holds under these names."""

    plans: torch.Tensor
    iterations: torch.Tensor
    marginal_error: torch.Tensor
    image_uniform: torch.Tensor
    query_uniform: torch.Tensor

    @classmethod
    def without_transport(cls, plans: torch.Tensor) -> PairSolutions:
        """Return a solution with a certificate of zeros."""
        pairs, device = len(plans), plans.device
        no = torch.zeros(pairs, dtype=torch.bool, device=device)
        return cls(
            plans=plans,
            iterations=torch.zeros(pairs, dtype=torch.int32, device=device),
            marginal_error=torch.zeros(pairs, device=device),
            image_uniform=no,
            query_uniform=no,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """One side's marginal: values float32 [P, R]; uniform bool [P]: it fell back; some_valid bool [P]."""

    values: torch.Tensor
    uniform: torch.Tensor
    some_valid: torch.Tensor


def whole_products(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return left int8 [A, D] @ right int8 [B, D]', int32 [A, B], exact on every device.

    float32 adds whole numbers below 2^24 without rounding, in any order. Numbers of 7 bits also pass unchanged through
    the shorter formats that a device may be set to multiply in (TF32, bfloat16), so those settings do not matter.
    """
    parts = [
        (left[:, start : start + EXACT_IN_FLOAT32].float() @ right[:, start : start + EXACT_IN_FLOAT32].float().T).to(
            torch.int32
        )
        for start in range(0, left.shape[1], EXACT_IN_FLOAT32)
    ]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def joined(digits: torch.Tensor) -> torch.Tensor:
    """Return what int32 products with the three digits, [3, ...], say together, float32; see products.py."""
    high, middle, low = digits.long()
    together: torch.Tensor = ((high * BASE + middle) * BASE + low).float()
    return together


def weigh(attention: torch.Tensor, valid: torch.Tensor, settings: MatchSettings) -> Weights:
    """Return the marginals of a side from its attention float32 [P, R], as kernels.weigh does."""
    attentive = settings.marginals is not Marginals.UNIFORM
    positive = torch.where(valid & (attention > 0) & attentive, attention, 0.0)
    total, count = positive.sum(1, keepdim=True), valid.sum(1, keepdim=True)
    some_attention, some_valid = total > 0, count > 0
    return Weights(
        values=torch.where(
            some_attention, positive / torch.where(some_attention, total, 1.0), valid / count.clamp(min=1)
        ),
        uniform=(some_valid & ~some_attention & attentive)[:, 0],
        some_valid=some_valid[:, 0],
    )


def divided(targets: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
    """Return targets / sums, 0 where a sum is 0."""
    return torch.where(sums == 0, 0.0, targets / torch.where(sums == 0, 1.0, sums))


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainScaling:
    """Sinkhorn's updates on float32 scaling vectors, for P pairs: kernel K [P, Rx, Rq], u [P, Rx] and v [P, Rq]."""

    relaxes: ClassVar[bool] = True

    kernel: torch.Tensor
    u: torch.Tensor
    v: torch.Tensor

    @classmethod
    def of(cls, values: torch.Tensor, u: torch.Tensor, v: torch.Tensor, epsilon: float) -> Self:
        """Return what to iterate for values float32 [P, Rx, Rq]: similarities less penalties."""
        return cls(kernel=torch.exp((values - 1) * (1 / epsilon)), u=u, v=v)

    def take(self, pairs: torch.Tensor) -> Self:
        """Return the same for some of the pairs."""
        return type(self)(kernel=self.kernel[pairs], u=self.u[pairs], v=self.v[pairs])

    def start(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a for b = 1, and this b."""
        return divided(self.u, self.kernel.sum(2)), torch.ones_like(self.v)

    def step(
        self, a: torch.Tensor, b: torch.Tensor, relaxed: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the next b, the next a, and the rows' L1 violation [P] of the plan that `a` and the next b make.

        Pairs that are `relaxed`, bool [P], go half as far again; see kernels.py.
        """
        b = further(divided(self.v, (self.kernel * a[:, :, None]).sum(1)), b, relaxed)
        rows = (self.kernel * b[:, None, :]).sum(2)
        return b, further(divided(self.u, rows), a, relaxed), (a * rows - self.u).abs().sum(1)

    def plans(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Return a_i K_ij b_j."""
        return a[:, :, None] * self.kernel * b[:, None, :]


class LogScaling(PlainScaling):
    """The same in the log domain, as log_kernels does: kernel, u, v, a and b are logarithms, and updates are plain."""

    __slots__ = ()
    relaxes = False

    @classmethod
    def of(cls, values: torch.Tensor, u: torch.Tensor, v: torch.Tensor, epsilon: float) -> Self:
        """Return what to iterate for values float32 [P, Rx, Rq]."""
        # Apple's devices have no float64.
        wide = torch.float32 if values.device.type == "mps" else torch.float64
        return cls(kernel=(values.to(wide) - 1) / epsilon, u=u.to(wide).log(), v=v.to(wide).log())

    def start(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ln a for ln b = 0, and this ln b."""
        return self.u - torch.logsumexp(self.kernel, 2), torch.zeros_like(self.v)

    def step(
        self, a: torch.Tensor, b: torch.Tensor, relaxed: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the next ln b, the next ln a and the violation."""
        del relaxed
        b = self.v - torch.logsumexp(self.kernel + a[:, :, None], 1)
        following = self.u - torch.logsumexp(self.kernel + b[:, None, :], 2)
        weights = self.u.exp()
        # A row without weight is -inf on both sides, and -inf - -inf is no number.
        moved = torch.where(weights > 0, (a - following).exp(), 1.0)
        return b, following, (weights * moved - weights).abs().sum(1).float()

    def plans(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Return exp(ln a_i + ln K_ij + ln b_j)."""
        return (a[:, :, None] + self.kernel + b[:, None, :]).exp()


def further(quotients: torch.Tensor, before: torch.Tensor, relaxed: torch.Tensor) -> torch.Tensor:
    """Return q^1.5 / before^0.5 of [P, R] where `relaxed` [P], else q; 0 stays."""
    growth = torch.sqrt(divided(quotients, before))
    return torch.where(relaxed[:, None], quotients * growth, quotients)


@dataclass(slots=True, kw_only=True)
class Course:
    """Where the scaling of P pairs stands; `where` int64 [P] is each pair's place, all others are as in kernels.py."""

    where: torch.Tensor
    a: torch.Tensor
    b: torch.Tensor
    error: torch.Tensor
    previous: torch.Tensor
    start: torch.Tensor
    iterations: torch.Tensor
    going: torch.Tensor
    relaxed: torch.Tensor
    may_relax: torch.Tensor

    @classmethod
    def of(cls, scaling: PlainScaling) -> Self:
        """Return the start of all pairs."""
        a, b = scaling.start()
        where = torch.arange(len(a), device=a.device)
        never = torch.full((len(a),), torch.inf, device=a.device)
        yes = torch.ones_like(where, dtype=torch.bool)
        return cls(
            where=where,
            a=a,
            b=b,
            error=never,
            previous=never,
            start=never,
            iterations=torch.zeros_like(where, dtype=torch.int32),
            going=yes,
            relaxed=~yes,
            may_relax=yes & scaling.relaxes,
        )

    def take(self, pairs: torch.Tensor) -> Self:
        """Return the course of some of the pairs."""
        return type(self)(**{field.name: getattr(self, field.name)[pairs] for field in fields(self)})

    def advance(self, scaling: PlainScaling, settings: MatchSettings, count: int) -> None:
        """Do iteration `count`; a pair that is done keeps its a, and so its b and error."""
        used = self.relaxed & (count < settings.max_iterations)
        self.b, following, self.error = scaling.step(self.a, self.b, used)
        self.iterations = self.iterations + self.going
        # The comparison also stops on NaN.
        more = (self.error > settings.tolerance) & (count < settings.max_iterations)
        self.a = torch.where(more[:, None], following, self.a)
        # One that is close enough but relaxed keeps its a too, to see whether a plain update of b ends it.
        self.going = self.going & (more | used)
        slow = self.may_relax & (count >= PLAIN_ITERATIONS) & (self.error > SLOW * self.previous)
        kept = self.error <= DIVERGED * self.start
        self.may_relax = self.may_relax & (kept | ~(more & used))
        self.start = torch.where(used, self.start, self.error)
        self.previous = torch.where(more, self.error, self.previous)
        self.relaxed = self.going & more & torch.where(used, kept, slow)


def scale(scaling: PlainScaling, settings: MatchSettings) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return plans [P, Rx, Rq], iterations int32 [P] and violations [P]; each pair stops by itself."""
    plans = torch.empty_like(scaling.kernel)
    course = Course.of(scaling)
    iterations, errors = torch.zeros_like(course.iterations), torch.zeros_like(course.error)
    count = 0
    while len(course.where):
        for _ in range(STRIDE):
            count += 1
            course.advance(scaling, settings, count)
        finished, left = torch.nonzero(~course.going)[:, 0], torch.nonzero(course.going)[:, 0]
        ended = course.take(finished)
        plans[ended.where] = scaling.take(finished).plans(ended.a, ended.b)
        iterations[ended.where], errors[ended.where] = ended.iterations, ended.error
        scaling, course = scaling.take(left), course.take(left)
    return plans, iterations, errors


def transport(products: PairProducts, settings: MatchSettings, *, in_logarithms: bool) -> PairSolutions:
    """Return the entropic plans; see reference.sinkhorn."""
    u, v = products.image_weights(settings), products.query_weights(settings)
    scaling = (LogScaling if in_logarithms else PlainScaling).of(products.values, u.values, v.values, settings.epsilon)
    plans, iterations, errors = scale(scaling, settings)
    solvable = u.some_valid & v.some_valid
    return PairSolutions(
        plans=torch.where(solvable[:, None, None], plans.float(), 0.0),
        iterations=iterations * solvable,
        marginal_error=torch.where(solvable, errors, 0.0),
        image_uniform=u.uniform,
        query_uniform=v.uniform,
    )


def assigned(values: torch.Tensor, valid: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return plans [P, R, C] in which each column puts its weight [P, C] on the valid row [P, R] of most value.

    Of equal values [P, R, C] the first row counts.
    """
    rows = values.shape[1]
    values = torch.where(valid[:, :, None], values, -torch.inf)
    order = torch.arange(rows, device=values.device)[None, :, None]
    first = torch.where(values == values.amax(1, keepdim=True), order, rows).amin(1, keepdim=True)
    # Without a valid row all values are -inf, and the first would be taken.
    return torch.where((order == first) & valid[:, :, None], weights[:, None, :], 0.0)


def cosine(products: PairProducts, _settings: MatchSettings, *, in_logarithms: bool) -> PairSolutions:
    """Leave everything zero: the final score adds the cosine."""
    del in_logarithms
    return PairSolutions.without_transport(torch.zeros_like(products.values))


def max_sim(products: PairProducts, settings: MatchSettings, *, in_logarithms: bool) -> PairSolutions:
    """Put each query cell's weight on the image cell of most value."""
    del in_logarithms
    v = products.query_weights(settings)
    plans = assigned(products.values, products.image_valid, v.values)
    return replace(PairSolutions.without_transport(plans), query_uniform=v.uniform)


def chamfer(products: PairProducts, settings: MatchSettings, *, in_logarithms: bool) -> PairSolutions:
    """Do so from both sides, half and half."""
    by_queries = max_sim(products, settings, in_logarithms=in_logarithms)
    u = products.image_weights(settings)
    by_images = assigned(products.values.transpose(1, 2), products.query_valid, u.values).transpose(1, 2)
    return replace(by_queries, plans=0.5 * by_queries.plans + 0.5 * by_images, image_uniform=u.uniform)


def same_cell(products: PairProducts, _settings: MatchSettings, *, in_logarithms: bool) -> PairSolutions:
    """Join equal places; both sides have as many cells."""
    del in_logarithms
    valid = products.image_valid & products.query_valid
    return PairSolutions.without_transport(torch.diag_embed(valid / valid.sum(1, keepdim=True).clamp(min=1)))


MATCHERS: Mapping[MatchMode, Callable[..., PairSolutions]] = {
    MatchMode.COSINE: cosine,
    MatchMode.MAX_SIM: max_sim,
    MatchMode.CHAMFER: chamfer,
    MatchMode.SAME_CELL: same_cell,
    MatchMode.STRUCTURAL: transport,
    MatchMode.POSITION_AWARE: transport,
}
