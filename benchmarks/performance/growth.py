"""How time grows with the batch, the images and the depth."""

from __future__ import annotations

from collections.abc import Iterator

from .measuring import interleaved, ratio, seconds
from .methods import METHODS, gradient_times_input
from .networks import images, model_of
from .section import Row, Section, Settings

__all__ = ["GROWTH"]

BATCHES, SIZES = (1, 2, 4, 8, 16, 32), (64, 128, 224, 512)
DEPTHS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


def rows(settings: Settings) -> Iterator[Row]:
    size = settings.size or 64
    first = (settings.networks or DEPTHS)[0]
    cases = [(first, batch, size) for batch in BATCHES]
    cases += [(first, 1, each) for each in SIZES if settings.size is None]
    cases += [(each, 1, size) for each in settings.networks or DEPTHS]
    for network, batch, width in dict.fromkeys(cases):
        x = images(batch, width)
        runs = {"unit": gradient_times_input(model_of(network), x)}
        for rule in ("z+", "gamma"):
            for name in ("fxlrp", "zennit"):
                run = METHODS[name](model_of(network), x, rule)
                assert run is not None
                runs[f"{rule} {name}"] = run
        times = interleaved(runs, settings.rounds)
        found = {name: ratio(taken, times["unit"]) for name, taken in times.items() if name != "unit"}
        yield {"network": network, "images": f"{batch} x {width} x {width}", "unit, s": seconds(times["unit"]), **found}


GROWTH = Section(
    name="growth",
    text="""With the batch, with the size of the images, with the depth; the unit is gradient x input.""",
    rows=rows,
    unchecked=("unit, s", "z+ zennit", "gamma zennit"),
)
