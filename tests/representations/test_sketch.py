"""A page of shapes: it follows a direction, each term has its share, what is held stays, ink adds up to the page."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from sdsedit.edit import distill
from sdsedit.guidance import SDS
from sdsedit.render.strokes import EVENODD, NONZERO, STROKE, Drawing, Topology, render
from sdsedit.representations.sketch import Augment, Page, Rates, homography, ink
from tests.guidance.gaussian import prompts
from tests.sketch.painter import Painter

SIZE = (24, 32)
PRIOR = Painter({})
STILL = Rates(points=1.0, widths=0.0, colours=0.0, opacity=0.0)
ALL = Rates(points=1.0, widths=0.1, colours=0.02, opacity=0.02, background=0.02)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shapes() -> tuple[Topology, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A stroke, a filled area and another stroke; opaque in part, one over the other."""
    topology = Topology((STROKE, NONZERO, STROKE), (((1, False),), ((2, True),), ((1, False),)), (True, True, True))
    a, b = [[4, 4], [10, 6], [14, 10], [20, 12]], [[28, 4], [24, 8], [28, 14], [22, 20]]
    area = [[8, 8], [20, 4], [26, 10], [24, 18], [16, 24], [6, 16]]
    points = torch.tensor([*a, *area, *b]).float()
    widths = torch.tensor([[2.0, 3.0], [1.0, 1.0], [1.5, 1.5]])
    colours = torch.tensor([[0.1, 0.1, 0.1, 0.9], [0.8, 0.2, 0.1, 0.7], [0.1, 0.3, 0.9, 1.0]])
    return topology, points, widths, colours, torch.ones(3)


def page(rates: Rates = ALL, steps: int = 10, seed: int = 0, **settings: Any) -> Page:
    return Page(*shapes(), SIZE, PRIOR, steps, generator(seed), rates, **settings)  # pyright: ignore


def pull(image: torch.Tensor, to: float = 0.3) -> torch.Tensor:
    return (image - to).square().mean()


def brighten(image: torch.Tensor) -> torch.Tensor:
    return 1e6 * (1 - image).sum()  # its units must not matter


def step(one: Page, index: int = 0, seed: int = 1) -> None:
    z = one.render(index).z
    one.step(torch.randn(z.shape, generator=generator(seed)))


def parameters(one: Page) -> list[torch.Tensor]:
    return [p.detach().clone() for p in (one.points, one.widths, one.colours, one.opacity, one.background)]


# Following a direction


def test_a_page_goes_where_the_model_wants_it():
    """The model's picture is this page with its shapes elsewhere: distillation brings them there."""
    topology = Topology((NONZERO,), (((4, True),),), (True,))
    corners = torch.tensor([[6.0, 6], [18, 6], [18, 18], [6, 18]])
    third = (corners.roll(-1, 0) - corners) / 3
    square = torch.stack([corners, corners + third, corners + 2 * third], dim=1).flatten(0, 1)
    colours, background = torch.tensor([[0.2, 0.2, 0.2, 1.0]]), torch.ones(3)

    def draw(points: torch.Tensor, colours: torch.Tensor) -> torch.Tensor:
        return render(Drawing(topology, points[None], torch.zeros(1, 1, 2), colours[None], background[None]), 32, 32)

    wanted = draw(square + torch.tensor([4.0, 7.0]), torch.tensor([[0.7, 0.2, 0.2, 1.0]]))
    prior = Painter({"target": wanted}, variance=0.0)
    rates = Rates(points=3.0, widths=0.0, colours=0.05, opacity=0.0)
    one = Page(topology, square, torch.zeros(1, 2), colours, background, (32, 32), prior, 80, generator(), rates)
    before = (one.picture() - wanted).square().mean()
    run = distill(one, prior, prompts(prior), SDS(scale=1.0, t_min=0.3, t_max=0.7), 80)
    assert run.steps_done == 80 and run.stopped == ""
    assert (one.picture() - wanted).square().mean() < 0.03 * before
    assert torch.allclose(one.colours.detach()[0], torch.tensor([0.7, 0.2, 0.2]), atol=0.05)


def test_one_seed_is_one_page_bit_for_bit():
    def run(seed: int) -> list[torch.Tensor]:
        one = page(seed=seed, augment=Augment(), terms={"pull": (0.5, pull)})
        for index in range(4):
            step(one, index, seed=index)
        return parameters(one)

    first, again, other = run(0), run(0), run(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])  # other views


def test_a_rate_of_0_keeps_a_parameter_as_it_is_and_the_others_move():
    one = page(STILL)
    before = parameters(one)
    for index in range(3):
        step(one, index)
    moved = [not torch.equal(a, b) for a, b in zip(before, parameters(one), strict=True)]
    assert moved == [True, False, False, False, False]


def test_the_rate_sinks_to_its_last_share_over_the_run_and_is_for_a_page_of_224_pixels():
    one = page(Rates(points=2.0, last=0.1), steps=5)
    rates = []
    for index in range(5):
        step(one, index)
        rates.append(one.optimizer.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(2.0 * 32 / 224) and rates[-1] == pytest.approx(0.1 * rates[0])
    assert rates[2] == pytest.approx(0.55 * rates[0]) and rates == sorted(rates, reverse=True)


def test_what_cannot_be_drawn_is_brought_back():
    topology, points, widths, colours, background = shapes()
    points, widths, colours = points.clone(), widths.clone(), colours.clone()
    points[0], points[3] = torch.tensor([-500.0, 5]), torch.tensor([500.0, 900])
    widths[0], widths[2] = torch.tensor([0.001, 50.0]), torch.tensor([3.0, 9.0])
    colours[0] = torch.tensor([-0.5, 1.5, 0.5, 1.2])
    one = Page(topology, points, widths, colours, background, SIZE, PRIOR, 4, generator(), ALL, widest=8.0)
    step(one)
    low, high = one.points.amin(0).tolist(), one.points.amax(0).tolist()
    assert low[0] == pytest.approx(-3.2) and high == pytest.approx([35.2, 27.2])  # a tenth of the longer side
    assert one.widths.min() >= 0 and one.widths.max() <= 8
    for each in (one.colours, one.opacity, one.background):
        assert each.min() >= 0 and each.max() <= 1


def test_strokes_do_not_thin_out_and_what_began_beyond_the_page_may_stay_there():
    topology, points, widths, colours, background = shapes()
    points, widths = points.clone(), widths.clone()
    points[0], widths[2] = torch.tensor([-12.0, 5.0]), torch.tensor([0.02, 0.02])
    rates = Rates(points=0.1, widths=20.0, opacity=0.0)
    one = Page(topology, points, widths, colours, background, SIZE, PRIOR, 9, generator(), rates, reach=0.5)
    for index in range(9):
        step(one, index, seed=index)
    assert torch.allclose(one.points[0], points[0], atol=0.2)
    assert one.widths[0].min() >= 0.3 * 32 / 224 - 1e-6 and one.widths[2].min() >= 0.02 - 1e-6


def test_a_page_without_shapes_steps_and_stays():
    empty = Topology((), (), ())
    one = Page(
        *(empty, torch.zeros(0, 2), torch.zeros(0, 2), torch.zeros(0, 4), torch.ones(3)),
        *(SIZE, PRIOR, 4, generator(), Rates()),
        terms={"pull": (0.5, pull)},
    )
    step(one)
    assert (one.picture() == 1).all() and one.shares == {
        "distillation": pytest.approx(2 / 3),
        "pull": pytest.approx(1 / 3),
    }
    assert ink(one.drawing(), torch.ones(2, *SIZE)).shape == (3, 0)


# Shares of the gradient


def test_the_weights_are_the_shares_whatever_units_a_term_has():
    one = page(distillation=0.5, terms={"pull": (0.3, pull), "brighten": (0.2, brighten)})
    step(one)
    assert one.shares == {
        name: pytest.approx(w) for name, w in (("distillation", 0.5), ("pull", 0.3), ("brighten", 0.2))
    }


def test_in_turn_one_term_a_step_has_the_weight_of_all():
    one = page(distillation=0.6, terms={"pull": (0.3, pull), "brighten": (0.1, brighten)}, in_turn=True)
    seen = []
    for index in range(4):
        step(one, index)
        seen.append(one.shares)
    a = {"distillation": pytest.approx(0.6), "pull": pytest.approx(0.4)}
    b = {"distillation": pytest.approx(0.6), "brighten": pytest.approx(0.4)}
    assert seen == [a, b, a, b]


@pytest.mark.parametrize("in_turn", [False, True])
def test_the_gradient_of_the_page_is_made_of_those_shares(in_turn):
    one = page(distillation=0.5, terms={"pull": (0.25, pull), "brighten": (0.25, brighten)}, in_turn=in_turn)
    z = one.render(0).z
    direction = torch.randn(z.shape, generator=generator())
    leaf = one.picture().requires_grad_()
    (g,) = torch.autograd.grad(PRIOR.encode(leaf), leaf, direction)
    (h,), (k,) = torch.autograd.grad(pull(leaf), leaf), torch.autograd.grad(brighten(leaf), leaf)
    total = 0.5 * g / g.norm() + (0.5 if in_turn else 0.25) * h / h.norm() + (0 if in_turn else 0.25) * k / k.norm()
    one.step(direction)
    fresh = page()
    render(fresh.drawing(), *SIZE).backward(total)
    for mine, theirs in ((one.points, fresh.points), (one.colours, fresh.colours), (one.background, fresh.background)):
        assert mine.grad is not None and theirs.grad is not None
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-6, rtol=1e-4)


def test_a_term_without_a_gradient_has_no_share_and_takes_none():
    one = page(distillation=0.5, terms={"pull": (0.25, pull), "nothing": (0.25, lambda image: 0 * image.sum())})
    step(one)
    assert one.shares == {"distillation": pytest.approx(2 / 3), "pull": pytest.approx(1 / 3), "nothing": 0.0}
    one.render(1)
    one.step(torch.zeros_like(one.render(1).z))  # what the loop sends after a direction that is not finite
    assert one.shares == {"distillation": 0.0, "pull": 1.0, "nothing": 0.0}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_never_reaches_the_page(bad):
    terms = {"pull": (0.25, pull), "bad": (0.25, lambda image: (image * bad).sum())}
    one, other = page(distillation=0.5, terms=terms), page(distillation=0.5, terms={"pull": (0.25, pull)})
    for index in range(2):
        step(one, index)
        step(other, index)
    assert one.shares["bad"] == 0 and all(
        torch.equal(a, b) for a, b in zip(parameters(one), parameters(other), strict=True)
    )
    before = parameters(alone := page())
    z = alone.render(0).z
    alone.step(torch.full_like(z, bad))
    assert alone.shares == {"distillation": 0.0}
    assert all(torch.equal(a, b) for a, b in zip(before, parameters(alone), strict=True))


def test_without_distillation_the_direction_plays_no_part():
    one, other = (page(distillation=0.0, terms={"pull": (1.0, pull)}) for _ in range(2))
    step(one, seed=1)
    step(other, seed=2)
    assert one.shares == {"pull": 1.0} and torch.equal(one.points, other.points)


# Held shapes, shared points


def test_held_shapes_stay_bit_for_bit_while_free_ones_move():
    free = torch.tensor([False, True, False])
    topology, points, widths, colours, background = shapes()
    points[0], widths[0, 0], colours[0, 0] = torch.tensor([-99.0, 3]), 0.01, 1.5  # not even brought back
    one = Page(topology, points, widths, colours, background, SIZE, PRIOR, 6, generator(), ALL, free=free)
    before = parameters(one)
    for index in range(6):
        step(one, index, seed=index)
    mine = torch.tensor([False] * 4 + [True] * 6 + [False] * 4)
    for old, new, keep in zip(before, parameters(one), (~mine, ~free, ~free, ~free), strict=False):
        assert torch.equal(old[keep], new[keep])
    assert not torch.equal(before[0][mine], one.points[mine]) and not torch.equal(before[2][1], one.colours[1])


def test_a_fill_and_its_stroke_share_their_points():
    topology = Topology((EVENODD, STROKE), (((2, True),), ((2, True),)), (True, True))
    points = torch.tensor([[8.0, 8], [20, 4], [26, 10], [24, 18], [16, 24], [6, 16]]).repeat(2, 1)
    index = torch.arange(6).repeat(2)
    colours = torch.tensor([[0.8, 0.2, 0.1, 1.0], [0.0, 0.0, 0.0, 1.0]])
    widths = torch.tensor([[0.0, 0.0], [2.0, 2.0]])
    settings = (topology, points, widths, colours, torch.ones(3), SIZE, PRIOR, 5, generator(), STILL)
    one, apart = Page(*settings, index=index), Page(*settings)
    assert torch.equal(one.picture(), apart.picture())
    for k in range(5):
        step(one, k, seed=k)
        step(apart, k, seed=k)
    together, own = one.drawing().points[0], apart.drawing().points[0]
    assert torch.equal(together[:6], together[6:]) and not torch.equal(together[:6], points[:6])
    assert not torch.equal(own[:6], own[6:])
    assert torch.equal(one.points[6:], points[6:])  # what nothing is drawn with does not move


def test_an_index_holds_the_points_of_held_shapes():
    topology = Topology((NONZERO, STROKE, STROKE), (((2, True),), ((2, True),), ((1, False),)), (True, True, True))
    points = torch.cat([shapes()[1][4:10], torch.zeros(6, 2), shapes()[1][10:]])
    index = torch.cat([torch.arange(6), torch.arange(6), torch.arange(12, 16)])
    free = torch.tensor([False, False, True])
    colours = torch.tensor([[0.8, 0.2, 0.1, 1.0], [0.0, 0.0, 0.0, 1.0], [0.2, 0.2, 0.9, 1.0]])
    one = Page(
        topology, points, torch.full((3, 2), 2.0), colours, torch.ones(3), SIZE, PRIOR, 3, generator(), STILL,
        free=free, index=index,
    )  # fmt: skip
    for k in range(3):
        step(one, k, seed=k)
    assert torch.equal(one.points[:12], points[:12]) and not torch.equal(one.points[12:], points[12:])


# New strokes for old ones


def test_replaced_shapes_are_new_to_the_optimiser_and_the_others_are_not():
    topology, points, widths, colours, background = shapes()
    one = Page(topology, points, widths, colours, background, SIZE, PRIOR, 9, generator(), ALL)
    for k in range(3):
        step(one, k, seed=k)
    rows = torch.tensor([2, 0])
    new_points = torch.stack([torch.full((4, 2), 5.0), torch.full((4, 2), 9.0)])
    new_widths, new_colours = torch.tensor([[1.0, 1.0], [2.0, 2.0]]), torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.5] * 4])
    before = parameters(one)
    one.replace_shapes(rows, new_points, new_widths, new_colours)
    assert (one.points[10:] == 5).all() and (one.points[:4] == 9).all()
    assert torch.equal(one.points[4:10], before[0][4:10])
    assert torch.equal(one.widths[rows], new_widths) and torch.equal(one.widths[1], before[1][1])
    assert torch.equal(one.colours[rows], new_colours[:, :3]) and torch.equal(one.opacity[rows], new_colours[:, 3])
    for parameter, mine, others in (
        (one.points, [*range(4), *range(10, 14)], range(4, 10)),
        (one.widths, [0, 2], [1]),
        (one.colours, [0, 2], [1]),
        (one.opacity, [0, 2], [1]),
    ):
        moments = one.optimizer.state[parameter]
        for name in ("exp_avg", "exp_avg_sq"):
            assert not moments[name][list(mine)].any()
            if parameter is not one.widths:  # a fill's widths have no gradient
                assert moments[name][list(others)].any()
    step(one, 3)  # and it goes on


def test_tending_is_done_ten_times_and_not_in_the_last_third():
    seen: list[int] = []
    one = page(steps=40, tend=lambda each: seen.append(each.index))
    for index in range(40):
        step(one, index)
    assert seen == [3, 7, 11, 15, 19, 23]


# Views


def test_a_homography_takes_four_points_to_four_others():
    square = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])
    for seed in range(20):
        a = square * (1 - 0.5 * torch.rand(4, 2, generator=generator(seed)))
        h = homography(a, square).double()
        q = torch.cat([a.double(), torch.ones(4, 1)], dim=1) @ h.T
        assert torch.allclose(q[:, :2] / q[:, 2:], square.double(), atol=1e-5) and h[2, 2] == 1
    assert torch.allclose(homography(square, square), torch.eye(3), atol=1e-6)
    shift = homography(square, square + 0.5)
    assert torch.allclose(shift, torch.tensor([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]]), atol=1e-6)


def test_views_of_blank_paper_are_blank_whatever_its_colour():
    for colour in ((1.0, 1.0, 1.0), (0.2, 0.7, 0.4)):
        blank = Page(*shapes()[:4], torch.tensor(colour), SIZE, PRIOR, 3, generator(), ALL, Augment(views=8))
        paper = torch.tensor(colour).view(1, 3, 1, 1).expand(1, 3, *SIZE)
        views = blank._views(paper)
        assert views.shape == (8, 3, *SIZE) and torch.allclose(views, paper.expand_as(views), atol=1e-6)


def test_a_view_without_crop_and_perspective_is_the_page():
    one = page(augment=Augment(views=2, crop=1.0, perspective=0.0))
    assert torch.allclose(one._views(one.picture()), one.picture().expand(2, -1, -1, -1), atol=1e-4)
    assert torch.equal(page(augment=Augment(views=0))._views(one.picture()), one.picture())
    assert torch.equal(page()._views(one.picture()), one.picture())


def test_views_differ_and_show_most_of_the_page():
    one = page(augment=Augment(views=6))
    views = one._views(one.picture())
    assert all(not torch.equal(views[0], other) for other in views[1:])
    dark = (1 - views).mean((1, 2, 3)) / (1 - one.picture()).mean()
    assert (dark > 0.35).all() and (dark < 1.6).all()  # from a page that is shrunk to one that is cropped
    assert views.min() >= one.picture().min() - 1e-5 and views.max() <= 1 + 1e-5


def test_perspective_shows_paper_around_the_page_and_a_crop_does_not():
    topology = Topology((NONZERO,), (((4, True),),), (True,))
    corners = torch.tensor([[-9.0, -9], [41, -9], [41, 33], [-9, 33]])
    third = (corners.roll(-1, 0) - corners) / 3
    full = torch.stack([corners, corners + third, corners + 2 * third], dim=1).flatten(0, 1)
    black = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    make: Callable[..., Page] = partial(
        Page, topology, full, torch.zeros(1, 2), black, torch.ones(3), SIZE, PRIOR, 3, generator(), ALL
    )
    cropped = make(Augment(views=8, crop=0.5, perspective=0.0))
    assert cropped._views(cropped.picture()).max() < 0.51  # at most half a pixel at the very edge
    turned = make(Augment(views=8, crop=1.0, perspective=0.4))
    views = turned._views(turned.picture())
    assert (views.amax((1, 2, 3)) > 0.99).all() and views[..., 12, 16].max() == 0


def test_all_views_of_a_step_are_encoded_and_the_sources_latent_is_beside_them():
    source = torch.rand(1, 3, *SIZE, generator=generator())
    mask = torch.ones(1, 1, 12, 16)
    view = page(augment=Augment(views=3), source=source, mask=mask).render(0)
    assert view.z.shape == view.z_src.shape == (3, 3, 12, 16) and view.mask is mask
    assert torch.equal(view.z_src[1:2], PRIOR.encode(source))
    plain = page().render(0)
    assert torch.equal(plain.z, plain.z_src) and plain.z.shape == (1, 3, 12, 16) and plain.mask is None
    assert not plain.z_src.requires_grad and plain.z.requires_grad


# The page as a picture


def test_a_picture_of_another_size_is_the_page_scaled():
    one = page()
    large = one.picture((48, 64))
    assert large.shape == (1, 3, 48, 64) and not large.requires_grad
    assert (F.avg_pool2d(large, 2) - one.picture()).abs().mean() < 0.01
    drawing = one.drawing((48, 64))
    assert torch.equal(drawing.points[0], one.points * 2) and torch.equal(drawing.widths[0], one.widths * 2)
    assert torch.equal(one.picture(SIZE), one.picture())


def test_time_in_the_renderer_is_counted():
    one = page()
    step(one)
    assert 0 < one.drawing_seconds < 60


# Ink


def opaque_scene() -> Drawing:
    topology, points, widths, colours, background = shapes()
    return Drawing(topology, points[None], widths[None], colours[None], background[None])


def test_visible_ink_and_what_shows_of_the_paper_make_up_the_page():
    drawing = opaque_scene()
    shown = ink(drawing, torch.zeros(0, *SIZE))
    assert shown.shape == (1, 3) and (shown > 1).all()
    black = drawing.colours.clone()
    black[..., :3] = 0
    paper = render(Drawing(drawing.topology, drawing.points, drawing.widths, black, drawing.background), *SIZE)
    total = shown[-1].sum() + paper[0, 0].sum()
    assert total.item() == pytest.approx(24 * 32, rel=1e-5)


def test_ink_is_counted_within_each_of_any_number_of_masks():
    masks = torch.rand(7, *SIZE, generator=generator())
    found = ink(opaque_scene(), masks)
    assert found.shape == (8, 3)
    for k in range(7):
        assert torch.allclose(ink(opaque_scene(), masks[k : k + 1]), found[[k, 7]], atol=1e-3)
    assert torch.allclose(ink(opaque_scene(), 1 - masks)[:7], found[7] - found[:7], atol=1e-3)  # inside and outside
    assert torch.equal(ink(opaque_scene(), torch.ones(1, *SIZE))[0], found[7])


def bars(top: float) -> Drawing:
    """A black bar, 8 x 10 pixels, under a red one of the same place and the opacity `top`."""
    corners = torch.tensor([[4.0, 6], [12, 6], [12, 16], [4, 16]])
    third = (corners.roll(-1, 0) - corners) / 3
    bar = torch.stack([corners, corners + third, corners + 2 * third], dim=1).flatten(0, 1)
    topology = Topology((NONZERO, NONZERO), (((4, True),), ((4, True),)), (True, True))
    colours = torch.tensor([[0.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, top]])
    return Drawing(topology, bar.repeat(2, 1)[None], torch.zeros(1, 2, 2), colours[None], torch.ones(1, 3))


def test_a_hidden_shape_has_no_ink_and_a_glazed_one_the_rest():
    assert ink(bars(1.0), torch.ones(1, *SIZE))[0].tolist() == pytest.approx([0, 80], abs=1e-3)
    assert ink(bars(0.25), torch.ones(1, *SIZE))[0].tolist() == pytest.approx([60, 20], abs=1e-3)


def test_half_of_the_ink_lies_in_a_mask_that_covers_half():
    mask = torch.zeros(2, *SIZE)
    mask[0, :, :8], mask[1] = 1, 0.5
    found = ink(bars(1.0), mask)
    assert found[:, 1].tolist() == pytest.approx([40, 40, 80], abs=1e-3)


def test_ink_leaves_the_drawing_without_gradients_and_works_under_inference_mode():
    drawing = opaque_scene()
    points = drawing.points.requires_grad_()
    ink(drawing, torch.ones(1, *SIZE))
    assert points.grad is None
    with torch.no_grad():
        assert torch.allclose(ink(drawing, torch.ones(1, *SIZE))[0], ink(drawing, torch.ones(1, *SIZE))[1])
