"""What `/metrics` shows, as numbers that a test can compare."""

from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from tests.api import Client


@dataclass(frozen=True)
class Figures:
    """One reading."""

    samples: Mapping[tuple[str, frozenset[tuple[str, str]]], float]

    @classmethod
    def of(cls, text: str) -> "Figures":
        """Of the text format. No sample may be there twice."""
        samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                key = (sample.name, frozenset(sample.labels.items()))
                assert key not in samples, key
                samples[key] = sample.value
        return cls(samples)

    def get(self, name: str, **labels: str) -> float:
        """The sum over all series that have these labels, 0 where there is none."""
        wanted = labels.items()
        return sum(value for (found, has), value in self.samples.items() if found == name and wanted <= set(has))


async def read_figures(client: Client) -> Figures:
    """What the server shows now."""
    response = await client.get("/metrics")
    assert response.status == 200
    return Figures.of(await response.text())
